"""What the project needs of an engine that speaks Tinker's protocol, question by question.

`make test` asks the embedded server; `make contract URL=… MODEL=…` asks any other, and compares with what is expected
of that engine in `expected.json`.
"""

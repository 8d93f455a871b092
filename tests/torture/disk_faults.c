/* Counts what a process does to the files below one directory, and interferes at the n-th time.
 *
 * Loaded by LD_PRELOAD, armed by disk_faults_arm in the process that is to suffer. The calls of libc are what Python and
 * Rust's standard library change files by, so that tensors are reached as well as text. The count and the call that was
 * hit lie in a mapped file, which outlives the process. For a power cut it notes, beside the directory, what a disk that
 * keeps nothing but what was synced has of it: a file's content under its inode, a directory's list under its own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL_BEFORE, KILL_AMIDST, DISK_FULL, READ_ONLY, VANISHED, POWER_CUT };
enum kind { CHANGES, GROWS };

struct control {
    long count;
    long hit;
    char event[240];
};

static struct control *control;
static char root[4096];
static size_t root_length;
static long fatal;
static enum mode mode;
static __thread int inside;

void disk_faults_arm(const char *directory, const char *control_file, long at, int how)
{
    int file = open(control_file, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, sizeof *control) != 0)
        abort();
    struct control *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(file);
    snprintf(root, sizeof root, "%s", directory);
    root_length = strlen(root);
    fatal = at;
    mode = how;
    control = mapped;
}

static void resolve(int folder, const char *name, char *path, size_t size)
{
    char link[64], base[4096];
    ssize_t length;
    if (name != NULL && name[0] == '/') {
        snprintf(path, size, "%s", name);
        return;
    }
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    length = readlink(link, base, sizeof base - 1);
    base[length < 0 ? 0 : length] = 0;
    if (name == NULL)
        snprintf(path, size, "%s", base);
    else
        snprintf(path, size, "%.2000s/%.2000s", base, name);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Whether a file lies below the directory, and its path. */
static int below(int folder, const char *name, char *path, size_t size)
{
    if (control == NULL || inside)
        return 0;
    inside = 1;
    resolve(folder, name, path, size);
    inside = 0;
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

/* What is to become of a call: 0 do it, -1 do half of it, otherwise fail with this error. */
static int verdict(const char *call, enum kind kind, int folder, const char *name)
{
    char path[4200], gone[4200];
    long number;
    if (!below(folder, name, path, sizeof path))
        return 0;
    number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (mode == COUNT || fatal == 0 || number < fatal || (mode == DISK_FULL && kind != GROWS))
        return 0;
    if (__atomic_add_fetch(&control->hit, 1, __ATOMIC_SEQ_CST) == 1) {
        snprintf(control->event, sizeof control->event, "%s %.200s", call, path + root_length);
        if (mode == VANISHED) {
            snprintf(gone, sizeof gone, "%.4000s.gone", root);
            inside = 1;
            rename(root, gone);
            inside = 0;
        }
        if (mode == KILL_BEFORE || mode == POWER_CUT)
            die();
        if (mode == KILL_AMIDST || (mode == DISK_FULL && strstr(call, "write") != NULL))
            return -1;
    }
    return mode == DISK_FULL ? ENOSPC : mode == READ_ONLY ? EROFS : 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define PERFORM(type, call)                  \
    do {                                     \
        type done = call;                    \
        if (fate == -1 && mode == KILL_AMIDST) \
            die();                           \
        return done;                         \
    } while (0)

#define CONSULT(call, kind, folder, path)              \
    int fate = verdict(call, kind, folder, path);      \
    if (fate > 0) {                                    \
        errno = fate;                                  \
        return -1;                                     \
    }

#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...)                           \
    {                                                                    \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t bits = va_arg(rest, mode_t);                              \
        va_end(rest);                                                    \
        if (!(flags & WRITES))                                           \
            return REAL(name)(path, flags, bits);                        \
        CONSULT("open", flags & O_CREAT ? GROWS : CHANGES, AT_FDCWD, path) \
        PERFORM(int, REAL(name)(path, flags, bits));                     \
    }

#define OPENAT(name)                                                     \
    int name(int folder, const char *path, int flags, ...)               \
    {                                                                    \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t bits = va_arg(rest, mode_t);                              \
        va_end(rest);                                                    \
        if (!(flags & WRITES))                                           \
            return REAL(name)(folder, path, flags, bits);                \
        CONSULT("open", flags & O_CREAT ? GROWS : CHANGES, folder, path) \
        PERFORM(int, REAL(name)(folder, path, flags, bits));             \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *data, size_t size)
{
    CONSULT("write", GROWS, file, NULL)
    PERFORM(ssize_t, REAL(write)(file, data, fate == -1 ? size / 2 : size));
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset)
{
    CONSULT("pwrite", GROWS, file, NULL)
    PERFORM(ssize_t, REAL(pwrite64)(file, data, fate == -1 ? size / 2 : size, offset));
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    CONSULT("writev", GROWS, file, NULL)
    PERFORM(ssize_t, REAL(writev)(file, parts, fate == -1 && count > 1 ? count / 2 : count));
}

static void list(const char *folder, FILE *out)
{
    struct dirent *entry;
    struct stat status;
    DIR *entries = opendir(folder);
    while (entries != NULL && (entry = readdir(entries)) != NULL)
        if (fstatat(dirfd(entries), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0)
            fprintf(out, "%lu %s\n", (unsigned long)status.st_ino, entry->d_name);
    if (entries != NULL)
        closedir(entries);
}

static void copy(const char *path, FILE *out)
{
    char block[65536];
    size_t size;
    FILE *in = fopen(path, "rb");
    while (in != NULL && (size = fread(block, 1, sizeof block, in)) > 0)
        fwrite(block, 1, size, out);
    if (in != NULL)
        fclose(in);
}

/* Note what the disk has now of a file, or of a directory: whole, or as before if the process dies amidst it. */
static void keep(int file)
{
    char path[4200], kept[4300], half[4400];
    struct stat status;
    FILE *out;
    if (mode != POWER_CUT || !below(file, NULL, path, sizeof path) || fstat(file, &status) != 0)
        return;
    inside = 1;
    snprintf(kept, sizeof kept, "%.4000s.disk/%lu", root, (unsigned long)status.st_ino);
    snprintf(half, sizeof half, "%s.%d", kept, gettid());
    out = fopen(half, "wb");
    if (out == NULL)
        abort();
    if (S_ISDIR(status.st_mode))
        list(path, out);
    else
        copy(path, out);
    fclose(out);
    if (rename(half, kept) != 0)
        abort();
    inside = 0;
}

int fsync(int file)
{
    CONSULT("fsync", CHANGES, file, NULL)
    int done = REAL(fsync)(file);
    if (fate == -1 && mode == KILL_AMIDST)
        die();
    if (done == 0)
        keep(file);
    return done;
}

int ftruncate64(int file, off64_t size)
{
    CONSULT("ftruncate", CHANGES, file, NULL)
    PERFORM(int, REAL(ftruncate64)(file, size));
}

int rename(const char *from, const char *to)
{
    CONSULT("rename", CHANGES, AT_FDCWD, to)
    PERFORM(int, REAL(rename)(from, to));
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    CONSULT("rename", CHANGES, to_folder, to)
    PERFORM(int, REAL(renameat)(from_folder, from, to_folder, to));
}

int unlink(const char *path)
{
    CONSULT("unlink", CHANGES, AT_FDCWD, path)
    PERFORM(int, REAL(unlink)(path));
}

int unlinkat(int folder, const char *path, int flags)
{
    CONSULT("unlink", CHANGES, folder, path)
    PERFORM(int, REAL(unlinkat)(folder, path, flags));
}

int rmdir(const char *path)
{
    CONSULT("rmdir", CHANGES, AT_FDCWD, path)
    PERFORM(int, REAL(rmdir)(path));
}

int mkdir(const char *path, mode_t bits)
{
    CONSULT("mkdir", GROWS, AT_FDCWD, path)
    PERFORM(int, REAL(mkdir)(path, bits));
}

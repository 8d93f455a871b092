/* A wall clock that jumps: adds an offset to what the processes of one machine read, and changes it at the n-th reading.
 *
 * Loaded by LD_PRELOAD with disk_faults.c, armed by clock_jumps_arm. Offset, count and plan lie in a mapped file, which
 * several processes share, and which outlives those that are killed; whoever else writes the offset sets the clock, too.
 * The kernel's own times, such as those of files, and all clocks that nobody can set stay what they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define JUMPS 16
#define SECOND 1000000000L

struct machine {
    long readings;
    long offset; /* nanoseconds */
    struct {
        long at;
        long offset;
    } jumps[JUMPS];
};

static struct machine *machine;

void clock_jumps_arm(const char *control_file)
{
    int file = open(control_file, O_RDWR);
    struct machine *mapped = mmap(NULL, sizeof *machine, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || mapped == MAP_FAILED)
        abort();
    close(file);
    machine = mapped;
}

/* What this reading of the clock is wrong by. */
static long offset(void)
{
    long number;
    if (machine == NULL)
        return 0;
    number = __atomic_add_fetch(&machine->readings, 1, __ATOMIC_SEQ_CST);
    for (int index = 0; index < JUMPS; index++)
        if (machine->jumps[index].at == number)
            __atomic_store_n(&machine->offset, machine->jumps[index].offset, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&machine->offset, __ATOMIC_SEQ_CST);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static __typeof__(&clock_gettime) real;
    long nanoseconds;
    int failed;
    if (real == NULL)
        real = REAL(clock_gettime);
    failed = real(clock, now);
    if (failed == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        nanoseconds = now->tv_sec * SECOND + now->tv_nsec + offset();
        now->tv_sec = nanoseconds / SECOND;
        now->tv_nsec = nanoseconds % SECOND;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (seconds != NULL)
        *seconds = precise.tv_sec;
    return precise.tv_sec;
}

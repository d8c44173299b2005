/* As soon as the file that STEP names is there, the time of day is 20 years later, as after a step of the clock. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME && access(getenv("STEP"), F_OK) == 0) time->tv_sec += 20L * 365 * 86400;
    return failed;
}

/* Makes writes and syncs of files under one folder fail, those of SQLite too. Loaded with LD_PRELOAD.

   gcc -shared -fPIC -O2 -o faults.so faults.c -ldl
   Armed through ctypes: the `at`-th call from then on fails, and with `sticky` every later one as well. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { FAULT_EIO, FAULT_ENOSPC, FAULT_SHORT, FAULT_TORN }; /* short: half is written; torn: half, then EIO */

static char root[4096];
static long remaining = -1, seen;
static int kind, sticky, armed;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

void fault_arm(const char *folder, long at, int what, int again) {
    pthread_mutex_lock(&mutex);
    snprintf(root, sizeof root, "%s", folder);
    remaining = at, seen = 0, kind = what, sticky = again, armed = 1;
    pthread_mutex_unlock(&mutex);
}

/* Returns how many calls there were since it was armed. */
long fault_disarm(void) {
    pthread_mutex_lock(&mutex);
    armed = 0;
    pthread_mutex_unlock(&mutex);
    return seen;
}

static int fails(int fd) {
    if (!armed) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, root, strlen(root))) return 0;
    pthread_mutex_lock(&mutex);
    int hit = armed && (seen == remaining || (sticky && seen > remaining));
    seen++;
    pthread_mutex_unlock(&mutex);
    return hit;
}

static int error(void) {
    errno = kind == FAULT_ENOSPC ? ENOSPC : EIO;
    return -1;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define WRITES(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        REAL(name); \
        if (!fails(fd)) return real(fd, data, size, offset); \
        if (kind == FAULT_SHORT) return real(fd, data, size > 1 ? size / 2 : size, offset); \
        if (kind == FAULT_TORN && size > 1) real(fd, data, size / 2, offset); \
        return error(); \
    }
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!fails(fd)) return real(fd, data, size);
    if (kind == FAULT_SHORT) return real(fd, data, size > 1 ? size / 2 : size);
    if (kind == FAULT_TORN && size > 1) real(fd, data, size / 2);
    return error();
}

#define SYNCS(name) \
    int name(int fd) { \
        REAL(name); \
        return fails(fd) && kind != FAULT_SHORT ? error() : real(fd); \
    }
SYNCS(fsync)
SYNCS(fdatasync)

#define TRUNCATES(name, length_type) \
    int name(int fd, length_type length) { \
        REAL(name); \
        return fails(fd) && kind != FAULT_SHORT ? error() : real(fd, length); \
    }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

/* Loaded before libc: counts the calls of a kind that this process makes, and lets one of them fail.
   SQLite writes and syncs by itself, where Python cannot be made to fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char counted[16];
static long seen, failing;

void faults_begin(const char *kind, long number) { seen = 0; failing = number; strncpy(counted, kind, sizeof counted - 1); }
long faults_end(void) { counted[0] = 0; return seen; }

static int fails(const char *kind, int code) {
    if (strcmp(counted, kind) != 0 || ++seen != failing) return 0;
    errno = code;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t size) { return fails("write", ENOSPC) ? -1 : REAL(write)(file, data, size); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
    return fails("write", ENOSPC) ? -1 : REAL(pwrite)(file, data, size, at);
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    return fails("write", ENOSPC) ? -1 : REAL(pwrite64)(file, data, size, at);
}
int ftruncate64(int file, off64_t size) { return fails("write", EIO) ? -1 : REAL(ftruncate64)(file, size); }
/* No test cuts the power: syncing for real would only take time. */
int fsync(int file) { return fails("fsync", EIO) ? -1 : 0; }
int fdatasync(int file) { return fails("fsync", EIO) ? -1 : 0; }
int rename(const char *from, const char *to) { return fails("rename", ENOSPC) ? -1 : REAL(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { return fails("create", ENOSPC) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char *path) { return fails("remove", EIO) ? -1 : REAL(unlink)(path); }

#define OPENS(name)                                              \
    int name(const char *path, int flags, ...) {                 \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        mode_t mode = (flags & O_CREAT) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                            \
        if ((flags & O_CREAT) && fails("create", ENOSPC)) return -1; \
        return REAL(name)(path, flags, mode);                    \
    }
OPENS(open)
OPENS(open64)

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *malloc(size_t size) { return fails("malloc", ENOMEM) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails("malloc", ENOMEM) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return fails("malloc", ENOMEM) ? NULL : __libc_realloc(old, size); }

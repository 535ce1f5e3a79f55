/* Makes one system call of a process fail: the nth of a kind on files below a folder called "result", once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static const char *armed = "";
static int code;
static long left;

void arm(const char *operation, long nth, int error) { armed = strdup(operation), left = nth, code = error; }

long calls_left(void) { return left; }

static int fails(const char *operation, const char *path)
{
    return !strcmp(operation, armed) && strstr(path, "result/") && !--left && ((errno = code), 1);
}

static int fails_on(const char *operation, int file)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = *armed ? readlink(link, path, sizeof path - 1) : 0;
    path[length > 0 ? length : 0] = 0;
    return fails(operation, path);
}

#define REAL(name, kind) ((kind) dlsym(RTLD_NEXT, name))

ssize_t write(int file, const void *content, size_t size)
{
    return fails_on("write", file) ? -1 : REAL("write", ssize_t (*)(int, const void *, size_t))(file, content, size);
}

int fsync(int file) { return fails_on("fsync", file) ? -1 : REAL("fsync", int (*)(int))(file); }

static int opened(const char *name, const char *path, int flags, mode_t mode)
{
    return fails(flags & O_CREAT ? "create" : "open", path) ? -1
        : REAL(name, int (*)(const char *, int, ...))(path, flags, mode);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        return opened(#name, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode)
{
    return fails("mkdir", path) ? -1 : REAL("mkdir", int (*)(const char *, mode_t))(path, mode);
}

int unlink(const char *path) { return fails("unlink", path) ? -1 : REAL("unlink", int (*)(const char *))(path); }

int rename(const char *from, const char *to)
{
    return fails("rename", to) ? -1 : REAL("rename", int (*)(const char *, const char *))(from, to);
}

/* syscall(2): calls by number go the same way as calls by name, where a name of ours exists.  The rest goes to the kernel from
 * here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "preload/preload.h"

struct args {
  long a[6];
};

static long kernel(long nr, const struct args *x) {
  register long r10 __asm__("r10") = x->a[3];
  register long r8 __asm__("r8") = x->a[4];
  register long r9 __asm__("r9") = x->a[5];
  long r;
  __asm__ volatile("syscall"
                   : "=a"(r)
                   : "a"(nr), "D"(x->a[0]), "S"(x->a[1]), "d"(x->a[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return r < 0 && r > -4096 ? fail((int)-r) : r;
}

typedef long call_fn(const struct args *x);

#define TEXT(i)   ((char *)x->a[i])
#define NUMBER(i) ((int)x->a[i])
#define CALL(name, expression)                                                                                                   \
  static long call_##name(const struct args *x) {                                                                                \
    return (long)(expression);                                                                                                   \
  }

CALL(open, open(TEXT(0), NUMBER(1), (mode_t)x->a[2]))
CALL(openat, openat(NUMBER(0), TEXT(1), NUMBER(2), (mode_t)x->a[3]))
CALL(creat, creat(TEXT(0), (mode_t)x->a[1]))
CALL(close, close(NUMBER(0)))
CALL(close_range, close_range((unsigned)x->a[0], (unsigned)x->a[1], NUMBER(2)))
CALL(ioctl, ioctl(NUMBER(0), (unsigned long)x->a[1], (void *)x->a[2]))
CALL(mmap, mmap((void *)x->a[0], (size_t)x->a[1], NUMBER(2), NUMBER(3), NUMBER(4), x->a[5]))
CALL(dup, dup(NUMBER(0)))
CALL(dup2, dup2(NUMBER(0), NUMBER(1)))
CALL(dup3, dup3(NUMBER(0), NUMBER(1), NUMBER(2)))
CALL(fcntl, fcntl(NUMBER(0), NUMBER(1), (void *)x->a[2]))
CALL(stat, stat(TEXT(0), (struct stat *)x->a[1]))
CALL(lstat, lstat(TEXT(0), (struct stat *)x->a[1]))
CALL(fstat, fstat(NUMBER(0), (struct stat *)x->a[1]))
CALL(newfstatat, fstatat(NUMBER(0), TEXT(1), (struct stat *)x->a[2], NUMBER(3)))
CALL(statx, statx(NUMBER(0), TEXT(1), NUMBER(2), (unsigned)x->a[3], (struct statx *)x->a[4]))
CALL(access, access(TEXT(0), NUMBER(1)))
CALL(faccessat, faccessat(NUMBER(0), TEXT(1), NUMBER(2), 0))
CALL(faccessat2, faccessat(NUMBER(0), TEXT(1), NUMBER(2), NUMBER(3)))
CALL(execve, execve(TEXT(0), (char *const *)x->a[1], (char *const *)x->a[2]))
CALL(execveat, execveat(NUMBER(0), TEXT(1), (char *const *)x->a[2], (char *const *)x->a[3], NUMBER(4)))

static long call_openat2(const struct args *x) {
  const struct open_how *how = (const struct open_how *)x->a[2];
  struct target t = path_target(NUMBER(0), TEXT(1));
  if (!t.kind) return fresh((int)kernel(SYS_openat2, x));
  return (size_t)x->a[3] < sizeof(*how) ? fail(EINVAL) : open_target(&t, (int)how->flags);
}

#define ROW(name) [SYS_##name] = call_##name
static call_fn *const calls[] = {
    ROW(open),   ROW(openat),     ROW(openat2),   ROW(creat),      ROW(close),  ROW(close_range), ROW(ioctl), ROW(mmap),
    ROW(dup),    ROW(dup2),       ROW(dup3),      ROW(fcntl),      ROW(stat),   ROW(lstat),       ROW(fstat), ROW(statx),
    ROW(access), ROW(newfstatat), ROW(faccessat), ROW(faccessat2), ROW(execve), ROW(execveat),
};

INTERPOSE long syscall(long nr, ...) {
  struct args x;
  va_list ap;
  va_start(ap, nr);
  for (int i = 0; i < 6; i++) x.a[i] = va_arg(ap, long);
  va_end(ap);
  call_fn *call = (unsigned long)nr < ARRAY_SIZE(calls) && !front_inside() ? calls[nr] : NULL;
  return call ? call(&x) : kernel(nr, &x);
}

/* What the files of the preload library share.
 *
 * Each interposed function asks first whether the call concerns a virtual device node or one of our descriptors; if not, or if
 * the library itself is calling, the function of the same name behind us in the search order gets the call unchanged.
 *
 * These files are compiled without _FILE_OFFSET_BITS and _FORTIFY_SOURCE (meson.build): both make the headers rename functions.
 */
#ifndef PRELOAD_PRELOAD_H
#define PRELOAD_PRELOAD_H

#include <stdbool.h>
#include <sys/types.h>
#include "api/front.h"
#include "base/types.h"
#include "uvirt.h"

#define INTERPOSE __attribute__((visibility("default")))

/* Another name of the function fn, with the attributes that libc's header gave fn. */
#if __has_attribute(copy)
#define ALIAS(fn) __attribute__((alias(#fn), copy(fn)))
#else
#define ALIAS(fn) __attribute__((alias(#fn)))
#endif

/* ---- real.c ---- */

enum real_index {
#define FN(name) REAL_##name,
#include "preload/real.def"
#undef FN
  REAL_COUNT
};
extern void *_Atomic real_functions[REAL_COUNT];
void *real_look_up(enum real_index i);

/* The function that the program would have called without us, with the type of the declared function fn.  All are looked up when
 * the library is loaded (so that none is in a signal handler); a call that comes earlier still looks up its own. */
#define REAL(fn)                                                                                                                 \
  ({                                                                                                                             \
    void *real_ = atomic_load_explicit(&real_functions[REAL_##fn], memory_order_relaxed);                                        \
    (__typeof__(&fn))(likely(real_) ? real_ : real_look_up(REAL_##fn));                                                          \
  })

/* Sets errno and returns -1. */
int fail(int err);

/* ---- paths.c ---- */

enum target_kind {
  TARGET_NONE,        /* nothing of ours: the kernel's business */
  TARGET_NODE,        /* a device node, or a link to an opened one */
  TARGET_OBJECT_LINK, /* /proc/self/fd/N of a VM, vCPU or device: cannot be opened */
  TARGET_TEXT,        /* a file whose contents we make */
};
struct target {
  enum target_kind kind;
  unsigned major, minor;                              /* TARGET_NODE */
  char *(*text)(const struct target *t, size_t *len); /* TARGET_TEXT: its contents, for free(); NULL with errno */
  const void *text_arg;
};

/* What path, relative to dirfd unless absolute, names.  Leaves errno alone. */
struct target path_target(int dirfd, const char *path);
/* The descriptor N of this process that path names as /proc/self/fd/N or in another such form; -1: it has another form. */
int path_descriptor(const char *path);

/* ---- textfiles.c ---- */

/* Sets t for the path of a file we make up; false for others. */
bool textfile_find(const char *path, struct target *t);

/* ---- open.c ---- */

/* open(2) of a target that is not TARGET_NONE. */
int open_target(const struct target *t, int flags);

/* ---- descriptors.c ---- */

/* Whether the call is about one of our descriptors, and not the library's own call. */
static inline bool ours(int fd) {
  return unlikely(uvirt_is_ours(fd)) && !front_inside();
}
/* The kernel gave out this number just now: it cannot be ours any more.  Returns it. */
int fresh(int fd);
/* fd is now a duplicate of old, which may be ours.  Returns fd, or -1 with errno and fd closed. */
int duplicated(int old, int fd);
/* The file behind fd is being closed by other means than close(). */
void forget(int fd);

#endif

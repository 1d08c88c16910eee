/* A bit per descriptor number. */
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/ownfd.h"
#include "base/types.h"

#define MAX_FDS   (1u << 16) /* what lies above is used, but not remembered */
#define FIRST_FD  512u
#define WORD_BITS 64u

static _Atomic u64 owned[MAX_FDS / WORD_BITS];
static _Atomic unsigned end; /* no bit from here on was ever set */

/* Where the client's own numbers hardly reach; the upper half of what there is, where there is little. */
static unsigned first_number(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit)) return FIRST_FD;
  return (unsigned)MIN(limit.rlim_cur / 2, (rlim_t)FIRST_FD);
}

static void mark(unsigned fd) {
  unsigned old = atomic_load(&end);
  while (old <= fd && !atomic_compare_exchange_weak(&end, &old, fd + 1)) {
  }
  atomic_fetch_or(&owned[fd / WORD_BITS], BIT(fd % WORD_BITS));
}

int own_fd(int fd) {
  if (fd < 0) return fd;
  int saved = errno;
  int high = fcntl(fd, F_DUPFD_CLOEXEC, (int)first_number());
  errno = saved;
  if (high >= 0) {
    close(fd);
    fd = high;
  }
  if ((unsigned)fd < MAX_FDS) mark((unsigned)fd);
  return fd;
}

/* The bit goes first: a front end looks at it to protect the number. */
void own_fd_close(int fd) {
  if (fd < 0) return;
  if ((unsigned)fd < MAX_FDS) atomic_fetch_and(&owned[fd / WORD_BITS], ~BIT(fd % WORD_BITS));
  close(fd);
}

bool own_fd_is(int fd) {
  if (fd < 0 || (unsigned)fd >= MAX_FDS) return false;
  return atomic_load_explicit(&owned[fd / WORD_BITS], memory_order_relaxed) & BIT(fd % WORD_BITS);
}

int own_fd_next(unsigned first) {
  unsigned n = atomic_load(&end);
  for (unsigned fd = first; fd < n; fd++)
    if (own_fd_is((int)fd)) return (int)fd;
  return -1;
}

void own_fd_forget_all(void) {
  for (unsigned i = 0; i * WORD_BITS < atomic_load(&end); i++) atomic_store(&owned[i], 0);
}

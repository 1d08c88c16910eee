/* Code memory of a VM. */
#include "jit/arena.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int jit_arena_create(struct jit_arena *a, size_t size) {
  int fd = memfd_create("uvirt-translations", MFD_CLOEXEC);
  if (fd < 0) return -errno;
  *a = (struct jit_arena){.size = size, .rw = MAP_FAILED, .rx = MAP_FAILED};
  int r = ftruncate(fd, (off_t)size) ? -errno : 0;
  if (!r) {
    a->rw = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    a->rx = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (a->rw == MAP_FAILED || a->rx == MAP_FAILED) r = -errno;
  }
  close(fd);
  if (!r) {
    madvise(a->rw, size, MADV_DONTFORK); /* a child must not write into its parent's code */
    madvise(a->rx, size, MADV_DONTFORK);
  } else {
    jit_arena_destroy(a);
  }
  return r;
}

void jit_arena_destroy(struct jit_arena *a) {
  if (a->rw && a->rw != MAP_FAILED) munmap(a->rw, a->size);
  if (a->rx && a->rx != MAP_FAILED) munmap(a->rx, a->size);
  *a = (struct jit_arena){0};
}

void jit_arena_reset(struct jit_arena *a) {
  madvise(a->rw, a->size, MADV_REMOVE);
  a->used = a->words = 0;
}

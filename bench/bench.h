/* What the benches share: a clock, and ioctls that must not fail. */
#ifndef BENCH_H
#define BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "uvirt.h"

static inline uint64_t now(void) { /* ns */
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static inline int call(int fd, unsigned long request, void *arg) {
  int r = uvirt_ioctl(fd, request, arg);
  if (r >= 0) return r;
  perror("ioctl");
  exit(1);
}

#endif

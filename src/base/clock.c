/* The monotonic clock in nanoseconds. */
#include <time.h>
#include "base/evloop.h"

u64 clock_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

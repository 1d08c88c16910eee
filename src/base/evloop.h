/* A service thread with timers and watched descriptors: one per VM. */
#ifndef BASE_EVLOOP_H
#define BASE_EVLOOP_H

#include "base/types.h"

struct evloop;

/* A one-shot timer on CLOCK_MONOTONIC.  Embedded by its owner; fn runs on the loop's thread without locks of the loop.  Arm again
 * from fn for a period. */
struct evtimer {
  struct evloop *loop;
  void (*fn)(struct evtimer *t);
  u64 deadline_ns;
  int heap_index; /* loop's; -1 when not armed */
};

/* The thread starts with evloop_start(), or with the first timer armed or descriptor added. */
struct evloop *evloop_create(const char *thread_name);
/* Starts the thread now, so that a failure can be reported: 0 or -errno. */
int evloop_start(struct evloop *loop);
/* Stops and joins the thread; timers may still be cancelled, and arming them does nothing. */
void evloop_stop(struct evloop *loop);
/* Stops, and frees.  No timer may be armed or cancelled by others any more. */
void evloop_destroy(struct evloop *loop);

void evtimer_init(struct evtimer *t, struct evloop *loop, void (*fn)(struct evtimer *t));
/* Arms (again).  Any thread.  Cheap when an earlier deadline is already armed (no system call). */
void evtimer_arm(struct evtimer *t, u64 deadline_ns);
/* Disarms.  With wait, fn is not running when it returns (do not call with wait from fn). */
void evtimer_cancel(struct evtimer *t, bool wait);

/* Watches fd; fn runs on the loop's thread.  0 or -errno. */
typedef void evfd_fn(void *arg, int fd, u32 epoll_events);
int evloop_add_fd(struct evloop *loop, int fd, u32 epoll_events, evfd_fn *fn, void *arg);
/* After return fn is not running and will not run (unless called from the loop's own thread). */
void evloop_del_fd(struct evloop *loop, int fd);

/* CLOCK_MONOTONIC in nanoseconds. */
u64 clock_now_ns(void);

#endif

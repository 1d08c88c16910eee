/* The service thread: a timer heap behind one timerfd, and watched descriptors behind one epoll instance.
 *
 * Lock: evloop.lock protects everything; callbacks run without it.  A forked child has no such thread: there every call but
 * evloop_destroy() does nothing.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include "base/evloop.h"
#include "base/lead.h"
#include "base/log.h"
#include "base/ownfd.h"
#include "base/process.h"

#define NEVER (~0ull)

/* epoll's user data: a serial number that is never used again, so that an event fetched before a removal finds nothing. */
enum { SERIAL_TIMER = 0, SERIAL_WAKE = 1, SERIAL_FIRST_WATCH = 2 };

struct watch {
  struct watch *next;
  u64 serial;
  int fd;
  evfd_fn *fn;
  void *arg;
};

struct evloop {
  pthread_mutex_t lock;
  pthread_cond_t idle; /* signalled when a callback has returned */
  pid_t owner;         /* (o) process that has the thread */
  char name[16];       /* (o) */
  pthread_t thread;
  bool started, stopping;        /* [lock] */
  int epoll, timer, wake;        /* (o) once started */
  struct evtimer **heap;         /* [lock] least deadline first */
  unsigned n, room;              /* [lock] */
  u64 programmed;                /* [lock] deadline that the timerfd is set for, less lead_ns */
  u32 lead_ns;                   /* [lock] base/lead.h: until the time has come the thread looks after its descriptors */
  bool expiring;                 /* [lock] the thread runs timers and programs the timerfd afterwards */
  struct evtimer *running_timer; /* [lock] */
  u64 running_watch;             /* [lock] serial */
  struct watch *watches;         /* [lock] */
  u64 next_serial;               /* [lock] */
};

static bool foreign(const struct evloop *loop) {
  return loop->owner != process_pid();
}
static bool on_loop_thread(const struct evloop *loop) {
  return loop->started && pthread_equal(pthread_self(), loop->thread);
}

/* ---- the heap ---- */

static void heap_put(struct evloop *loop, unsigned i, struct evtimer *t) {
  loop->heap[i] = t;
  t->heap_index = (int)i;
}

static void sift_up(struct evloop *loop, unsigned i) {
  struct evtimer *t = loop->heap[i];
  for (; i > 0; i = (i - 1) / 2) {
    struct evtimer *parent = loop->heap[(i - 1) / 2];
    if (parent->deadline_ns <= t->deadline_ns) break;
    heap_put(loop, i, parent);
  }
  heap_put(loop, i, t);
}

static void sift_down(struct evloop *loop, unsigned i) {
  struct evtimer *t = loop->heap[i];
  for (;;) {
    unsigned child = 2 * i + 1;
    if (child >= loop->n) break;
    if (child + 1 < loop->n && loop->heap[child + 1]->deadline_ns < loop->heap[child]->deadline_ns) child++;
    if (t->deadline_ns <= loop->heap[child]->deadline_ns) break;
    heap_put(loop, i, loop->heap[child]);
    i = child;
  }
  heap_put(loop, i, t);
}

static void heap_remove(struct evloop *loop, struct evtimer *t) {
  unsigned i = (unsigned)t->heap_index;
  t->heap_index = -1;
  struct evtimer *last = loop->heap[--loop->n];
  if (last == t) return;
  heap_put(loop, i, last);
  sift_up(loop, i);
  sift_down(loop, (unsigned)last->heap_index);
}

static bool heap_insert(struct evloop *loop, struct evtimer *t) {
  if (loop->n == loop->room) {
    unsigned room = loop->room ? loop->room * 2 : 16;
    struct evtimer **heap = realloc(loop->heap, room * sizeof(*heap));
    if (!heap) return false;
    loop->heap = heap;
    loop->room = room;
  }
  loop->heap[loop->n] = t;
  sift_up(loop, loop->n++);
  return true;
}

/* ---- the thread ---- */

/* lock held */
static void program(struct evloop *loop, u64 deadline) {
  loop->programmed = deadline;
  u64 at = deadline == NEVER ? 0 : deadline > loop->lead_ns ? deadline - loop->lead_ns : 1; /* 0 disarms a timerfd */
  struct itimerspec its = {.it_value = {.tv_sec = (time_t)(at / 1000000000ull), .tv_nsec = (long)(at % 1000000000ull)}};
  timerfd_settime(loop->timer, TFD_TIMER_ABSTIME, &its, NULL);
}

/* What is due.  Returns whether the next one is so near that it is waited for. */
static bool run_timers(struct evloop *loop) {
  u64 expirations;
  bool woken = read(loop->timer, &expirations, sizeof(expirations)) > 0;
  pthread_mutex_lock(&loop->lock);
  u64 now = clock_now_ns();
  if (woken && loop->programmed != NEVER) lead_learn(&loop->lead_ns, now, loop->programmed);
  loop->expiring = true;
  while (loop->n && loop->heap[0]->deadline_ns <= now && !loop->stopping) {
    struct evtimer *t = loop->heap[0];
    heap_remove(loop, t);
    loop->running_timer = t;
    pthread_mutex_unlock(&loop->lock);
    t->fn(t); /* may arm or free t */
    pthread_mutex_lock(&loop->lock);
    loop->running_timer = NULL;
    pthread_cond_broadcast(&loop->idle);
    if (loop->n && loop->heap[0]->deadline_ns > now) now = clock_now_ns();
  }
  u64 next = loop->n ? loop->heap[0]->deadline_ns : NEVER;
  bool near = next != NEVER && next - MIN(next, now) <= loop->lead_ns && !loop->stopping;
  loop->expiring = near; /* nobody need set the timerfd: this looks again */
  if (!near) program(loop, next);
  pthread_mutex_unlock(&loop->lock);
  return near;
}

static void run_watch(struct evloop *loop, u64 serial, u32 events) {
  pthread_mutex_lock(&loop->lock);
  struct watch *w = loop->watches;
  while (w && w->serial != serial) w = w->next;
  if (w) {
    evfd_fn *fn = w->fn;
    void *arg = w->arg;
    int fd = w->fd;
    loop->running_watch = serial;
    pthread_mutex_unlock(&loop->lock);
    fn(arg, fd, events); /* may remove the watch */
    pthread_mutex_lock(&loop->lock);
    loop->running_watch = 0;
    pthread_cond_broadcast(&loop->idle);
  }
  pthread_mutex_unlock(&loop->lock);
}

static void *loop_thread(void *arg) {
  struct evloop *loop = arg;
  struct epoll_event ev[16];
  pthread_setname_np(pthread_self(), loop->name);
  for (bool near = false;;) {
    int n = epoll_wait(loop->epoll, ev, ARRAY_SIZE(ev), near ? 0 : -1);
    if (near) near = run_timers(loop);
    for (int i = 0; i < n; i++) {
      if (ev[i].data.u64 == SERIAL_WAKE) return NULL; /* written only by evloop_stop() */
      if (ev[i].data.u64 == SERIAL_TIMER)
        near = run_timers(loop);
      else
        run_watch(loop, ev[i].data.u64, ev[i].events);
    }
    if (n < 0 && errno != EINTR) return NULL;
  }
}

static int epoll_put(struct evloop *loop, int fd, u32 events, u64 serial) {
  struct epoll_event ev = {.events = events, .data.u64 = serial};
  return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static void close_fds(struct evloop *loop) {
  own_fd_close(loop->epoll);
  own_fd_close(loop->timer);
  own_fd_close(loop->wake);
  loop->epoll = loop->timer = loop->wake = -1;
}

static int open_fds(struct evloop *loop) {
  loop->epoll = own_fd(epoll_create1(EPOLL_CLOEXEC));
  loop->timer = own_fd(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  loop->wake = own_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (loop->epoll < 0 || loop->timer < 0 || loop->wake < 0) return -errno;
  int r = epoll_put(loop, loop->timer, EPOLLIN, SERIAL_TIMER);
  return r ? r : epoll_put(loop, loop->wake, EPOLLIN, SERIAL_WAKE);
}

/* The client's handlers must not run on our thread.  Signals of faulting instructions stay: blocked, they would kill the process.
 */
static int spawn(struct evloop *loop) {
  static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
  sigset_t all, old;
  sigfillset(&all);
  for (unsigned i = 0; i < ARRAY_SIZE(faults); i++) sigdelset(&all, faults[i]);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int r = pthread_create(&loop->thread, NULL, loop_thread, loop);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return -r;
}

/* lock held */
static int start_locked(struct evloop *loop) {
  if (loop->started || loop->stopping) return 0;
  int r = open_fds(loop);
  if (!r) r = spawn(loop);
  if (r)
    close_fds(loop);
  else
    loop->started = true;
  return r;
}

int evloop_start(struct evloop *loop) {
  if (foreign(loop)) return -EIO;
  pthread_mutex_lock(&loop->lock);
  int r = start_locked(loop);
  pthread_mutex_unlock(&loop->lock);
  return r;
}

struct evloop *evloop_create(const char *thread_name) {
  process_init();
  struct evloop *loop = calloc(1, sizeof(*loop));
  if (!loop) return NULL;
  pthread_mutex_init(&loop->lock, NULL);
  pthread_cond_init(&loop->idle, NULL);
  loop->owner = process_pid();
  snprintf(loop->name, sizeof(loop->name), "%s", thread_name);
  loop->epoll = loop->timer = loop->wake = -1;
  loop->programmed = NEVER;
  loop->next_serial = SERIAL_FIRST_WATCH;
  return loop;
}

void evloop_stop(struct evloop *loop) {
  if (foreign(loop)) return;
  pthread_mutex_lock(&loop->lock);
  bool join = loop->started && !loop->stopping;
  loop->stopping = true;
  pthread_mutex_unlock(&loop->lock);
  if (!join) return;
  eventfd_write(loop->wake, 1);
  pthread_join(loop->thread, NULL);
}

void evloop_destroy(struct evloop *loop) {
  if (!loop) return;
  evloop_stop(loop);
  close_fds(loop);
  while (loop->watches) {
    struct watch *next = loop->watches->next;
    free(loop->watches);
    loop->watches = next;
  }
  free(loop->heap);
  free(loop);
}

/* ---- timers ---- */

void evtimer_init(struct evtimer *t, struct evloop *loop, void (*fn)(struct evtimer *t)) {
  *t = (struct evtimer){.loop = loop, .fn = fn, .heap_index = -1};
}

/* lock held */
static void arm_locked(struct evloop *loop, struct evtimer *t, u64 deadline_ns) {
  if (t->heap_index >= 0) heap_remove(loop, t);
  t->deadline_ns = deadline_ns;
  if (start_locked(loop) || !heap_insert(loop, t)) {
    log_warn("a timer is lost: no memory or no thread for it");
    return;
  }
  /* A timerfd that fires too early costs one wake-up; only an earlier deadline has to be told to the kernel now. */
  if (!loop->expiring && loop->heap[0]->deadline_ns < loop->programmed) program(loop, loop->heap[0]->deadline_ns);
}

void evtimer_arm(struct evtimer *t, u64 deadline_ns) {
  struct evloop *loop = t->loop;
  if (foreign(loop)) return;
  pthread_mutex_lock(&loop->lock);
  if (!loop->stopping) arm_locked(loop, t, deadline_ns);
  pthread_mutex_unlock(&loop->lock);
}

void evtimer_cancel(struct evtimer *t, bool wait) {
  struct evloop *loop = t->loop;
  if (!loop || foreign(loop)) return;
  pthread_mutex_lock(&loop->lock);
  if (t->heap_index >= 0) heap_remove(loop, t);
  while (wait && loop->running_timer == t && !on_loop_thread(loop)) {
    pthread_cond_wait(&loop->idle, &loop->lock);
    if (t->heap_index >= 0) heap_remove(loop, t); /* fn armed it again */
  }
  pthread_mutex_unlock(&loop->lock);
}

/* ---- descriptors ---- */

int evloop_add_fd(struct evloop *loop, int fd, u32 epoll_events, evfd_fn *fn, void *arg) {
  if (foreign(loop)) return -EIO;
  struct watch *w = malloc(sizeof(*w));
  if (!w) return -ENOMEM;
  pthread_mutex_lock(&loop->lock);
  *w = (struct watch){.next = loop->watches, .serial = loop->next_serial++, .fd = fd, .fn = fn, .arg = arg};
  int r = start_locked(loop);
  if (!r && loop->stopping) r = -EIO;
  if (!r) {
    loop->watches = w; /* under the lock before the first event can look for it */
    r = epoll_put(loop, fd, epoll_events, w->serial);
    if (r) loop->watches = w->next;
  }
  pthread_mutex_unlock(&loop->lock);
  if (r) free(w);
  return r;
}

void evloop_del_fd(struct evloop *loop, int fd) {
  if (foreign(loop)) return;
  pthread_mutex_lock(&loop->lock);
  struct watch **p = &loop->watches;
  while (*p && (*p)->fd != fd) p = &(*p)->next;
  struct watch *w = *p;
  if (w) {
    *p = w->next;
    epoll_ctl(loop->epoll, EPOLL_CTL_DEL, fd, NULL);
    while (loop->running_watch == w->serial && !on_loop_thread(loop)) pthread_cond_wait(&loop->idle, &loop->lock);
    free(w);
  }
  pthread_mutex_unlock(&loop->lock);
}

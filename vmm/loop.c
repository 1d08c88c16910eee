/* The main thread's event loop: descriptors and timers with callbacks, over epoll and one timerfd.
 *
 * loop->lock guards the lists; callbacks run without it.  A watch that is removed while its event waits in the current batch is
 * marked dead and freed after the batch, so that a removed descriptor's callback does not start any more (when the removal was
 * made on the main thread; another thread may see one call that had already begun). */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "vmm/loop.h"

enum { BATCH = 32 };

struct watch {
  struct watch *next;
  int fd;
  bool dead;
  vmm_fd_fn *fn;
  void *opaque;
};

struct vmm_timer {
  struct vmm_timer *next; /* armed timers, by deadline; lock: loop->lock */
  struct vmm_loop *loop;
  bool armed;
  uint64_t deadline_ns;
  vmm_timer_fn *fn;
  void *opaque;
};

struct vmm_loop {
  int epoll_fd, timer_fd, stop_fd; /* set once */
  pthread_mutex_t lock;
  struct watch *watches;    /* lock */
  struct watch *dead;       /* lock; freed by the loop's thread between batches */
  struct vmm_timer *timers; /* lock */
  atomic_bool stop;
};

static uint64_t now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int epoll_set(struct vmm_loop *loop, int op, int fd, uint32_t events, struct watch *w) {
  struct epoll_event ev = {.events = events, .data.ptr = w};
  return epoll_ctl(loop->epoll_fd, op, fd, &ev) < 0 ? -errno : 0;
}

struct vmm_loop *vmm_loop_create(void) {
  struct vmm_loop *loop = calloc(1, sizeof(*loop));
  if (!loop) return NULL;
  pthread_mutex_init(&loop->lock, NULL);
  loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  loop->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  struct epoll_event timer = {.events = EPOLLIN, .data.ptr = &loop->timer_fd},
                     stop = {.events = EPOLLIN, .data.ptr = &loop->stop_fd};
  if (loop->epoll_fd < 0 || loop->timer_fd < 0 || loop->stop_fd < 0 ||
      epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->timer_fd, &timer) < 0 ||
      epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->stop_fd, &stop) < 0) {
    vmm_loop_destroy(loop);
    return NULL;
  }
  return loop;
}

static void free_watches(struct watch *w) {
  while (w) {
    struct watch *next = w->next;
    free(w);
    w = next;
  }
}

void vmm_loop_destroy(struct vmm_loop *loop) {
  if (!loop) return;
  free_watches(loop->watches);
  free_watches(loop->dead);
  if (loop->epoll_fd >= 0) close(loop->epoll_fd);
  if (loop->timer_fd >= 0) close(loop->timer_fd);
  if (loop->stop_fd >= 0) close(loop->stop_fd);
  pthread_mutex_destroy(&loop->lock);
  free(loop);
}

int vmm_loop_add(struct vmm_loop *loop, int fd, uint32_t events, vmm_fd_fn *fn, void *opaque) {
  struct watch *w = malloc(sizeof(*w));
  if (!w) return -ENOMEM;
  *w = (struct watch){.fd = fd, .fn = fn, .opaque = opaque};
  pthread_mutex_lock(&loop->lock);
  int r = epoll_set(loop, EPOLL_CTL_ADD, fd, events, w);
  if (r == 0) {
    w->next = loop->watches;
    loop->watches = w;
  }
  pthread_mutex_unlock(&loop->lock);
  if (r) free(w);
  return r;
}

static struct watch **find_watch(struct vmm_loop *loop, int fd) {
  struct watch **p = &loop->watches;
  while (*p && (*p)->fd != fd) p = &(*p)->next;
  return p;
}

int vmm_loop_mod(struct vmm_loop *loop, int fd, uint32_t events) {
  pthread_mutex_lock(&loop->lock);
  struct watch *w = *find_watch(loop, fd);
  int r = w ? epoll_set(loop, EPOLL_CTL_MOD, fd, events, w) : -ENOENT;
  pthread_mutex_unlock(&loop->lock);
  return r;
}

int vmm_loop_del(struct vmm_loop *loop, int fd) {
  pthread_mutex_lock(&loop->lock);
  struct watch **p = find_watch(loop, fd), *w = *p;
  if (w) {
    *p = w->next;
    epoll_set(loop, EPOLL_CTL_DEL, fd, 0, NULL);
    w->dead = true;
    w->next = loop->dead;
    loop->dead = w;
  }
  pthread_mutex_unlock(&loop->lock);
  return w ? 0 : -ENOENT;
}

struct vmm_timer *vmm_timer_create(struct vmm_loop *loop, vmm_timer_fn *fn, void *opaque) {
  struct vmm_timer *t = malloc(sizeof(*t));
  if (t) *t = (struct vmm_timer){.loop = loop, .fn = fn, .opaque = opaque};
  return t;
}

/* Sets the timerfd to the earliest deadline; lock held. */
static void program_timerfd(struct vmm_loop *loop) {
  uint64_t ns = loop->timers ? loop->timers->deadline_ns : 0;
  if (loop->timers && ns == 0) ns = 1; /* 0 disarms */
  struct itimerspec its = {.it_value = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)}};
  timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &its, NULL);
}

static void unlink_timer(struct vmm_timer *t) {
  if (!t->armed) return;
  struct vmm_timer **p = &t->loop->timers;
  while (*p != t) p = &(*p)->next;
  *p = t->next;
  t->armed = false;
}

void vmm_timer_arm(struct vmm_timer *t, uint64_t deadline_ns) {
  struct vmm_loop *loop = t->loop;
  pthread_mutex_lock(&loop->lock);
  unlink_timer(t);
  struct vmm_timer **p = &loop->timers;
  while (*p && (*p)->deadline_ns <= deadline_ns) p = &(*p)->next;
  t->deadline_ns = deadline_ns;
  t->next = *p;
  t->armed = true;
  *p = t;
  if (loop->timers == t) program_timerfd(loop);
  pthread_mutex_unlock(&loop->lock);
}

/* A timerfd that goes off for a timer that was cancelled finds nothing due and is set anew: no need to touch it here. */
void vmm_timer_cancel(struct vmm_timer *t) {
  pthread_mutex_lock(&t->loop->lock);
  unlink_timer(t);
  pthread_mutex_unlock(&t->loop->lock);
}

void vmm_timer_destroy(struct vmm_timer *t) {
  if (!t) return;
  vmm_timer_cancel(t);
  free(t);
}

static void run_timers(struct vmm_loop *loop) {
  uint64_t expirations;
  if (read(loop->timer_fd, &expirations, sizeof(expirations)) < 0 && errno != EAGAIN) return;
  uint64_t now = now_ns();
  pthread_mutex_lock(&loop->lock);
  while (loop->timers && loop->timers->deadline_ns <= now) {
    struct vmm_timer *t = loop->timers;
    vmm_timer_fn *fn = t->fn;
    void *opaque = t->opaque;
    unlink_timer(t);
    pthread_mutex_unlock(&loop->lock);
    fn(opaque); /* may arm, cancel or destroy any timer */
    pthread_mutex_lock(&loop->lock);
  }
  if (loop->timers) program_timerfd(loop);
  pthread_mutex_unlock(&loop->lock);
}

static void run_watch(struct vmm_loop *loop, struct watch *w, uint32_t events) {
  pthread_mutex_lock(&loop->lock);
  bool dead = w->dead;
  pthread_mutex_unlock(&loop->lock);
  if (!dead) w->fn(w->opaque, w->fd, events);
}

static void reap_dead(struct vmm_loop *loop) {
  pthread_mutex_lock(&loop->lock);
  struct watch *dead = loop->dead;
  loop->dead = NULL;
  pthread_mutex_unlock(&loop->lock);
  free_watches(dead);
}

static void drain_stop(struct vmm_loop *loop) {
  uint64_t count;
  while (read(loop->stop_fd, &count, sizeof(count)) > 0) continue;
}

int vmm_loop_run(struct vmm_loop *loop) {
  struct epoll_event events[BATCH];
  while (!atomic_load(&loop->stop)) {
    int n = epoll_wait(loop->epoll_fd, events, BATCH, -1);
    if (n < 0 && errno != EINTR) return -errno;
    for (int i = 0; i < n && !atomic_load(&loop->stop); i++) {
      void *ptr = events[i].data.ptr;
      if (ptr == &loop->timer_fd)
        run_timers(loop);
      else if (ptr == &loop->stop_fd)
        drain_stop(loop);
      else
        run_watch(loop, ptr, events[i].events);
    }
    reap_dead(loop);
  }
  atomic_store(&loop->stop, false);
  drain_stop(loop); /* after the store: a stop in between is seen by the next run */
  return 0;
}

/* Only an atomic store and a write: for signal handlers. */
void vmm_loop_stop(struct vmm_loop *loop) {
  static const uint64_t one = 1;
  atomic_store(&loop->stop, true);
  ssize_t ignored = write(loop->stop_fd, &one, sizeof(one));
  (void)ignored;
}

/* The service thread: an epoll loop with a timer heap. */
#include "base/evloop.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct watch {
  struct watch *next;
  int fd;
  bool dead;
  evfd_fn *fn;
  void *arg;
};

/* lock guards the heap, the watches and `running`.  Callbacks run without it. */
struct evloop {
  pthread_mutex_t lock;
  pthread_cond_t idle; /* a callback has ended */
  pthread_t thread;
  int epoll, timer, wake;
  bool stop;
  struct evtimer **heap;
  int n, room;
  u64 armed_ns;               /* what the timerfd is set to; 0: off */
  struct evtimer *running;    /* timer whose fn runs now */
  struct watch *running_watch;
  struct watch *watches, *buried;
};

u64 clock_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (u64)t.tv_sec * 1000000000ull + (u64)t.tv_nsec;
}

static void heap_put(struct evloop *l, int at, struct evtimer *t) {
  l->heap[at] = t;
  t->heap_index = at;
}

static void sift(struct evloop *l, int at) {
  struct evtimer *t = l->heap[at];
  while (at > 0 && l->heap[(at - 1) / 2]->deadline_ns > t->deadline_ns) {
    heap_put(l, at, l->heap[(at - 1) / 2]);
    at = (at - 1) / 2;
  }
  for (int child; (child = 2 * at + 1) < l->n; at = child) {
    if (child + 1 < l->n && l->heap[child + 1]->deadline_ns < l->heap[child]->deadline_ns) child++;
    if (l->heap[child]->deadline_ns >= t->deadline_ns) break;
    heap_put(l, at, l->heap[child]);
  }
  heap_put(l, at, t);
}

static void heap_remove(struct evloop *l, struct evtimer *t) {
  int at = t->heap_index;
  t->heap_index = -1;
  struct evtimer *last = l->heap[--l->n];
  if (last == t) return;
  heap_put(l, at, last);
  sift(l, at);
}

/* Sets the timerfd when the earliest deadline is earlier than what it is set to (a later one is found out by waking up early). */
static void rearm(struct evloop *l) {
  u64 first = l->n ? l->heap[0]->deadline_ns : 0;
  if (!first || (l->armed_ns && l->armed_ns <= first)) return;
  l->armed_ns = first;
  struct itimerspec its = {.it_value = {.tv_sec = (time_t)(first / 1000000000ull), .tv_nsec = (long)(first % 1000000000ull)}};
  timerfd_settime(l->timer, TFD_TIMER_ABSTIME, &its, NULL);
}

static void run_timers(struct evloop *l) {
  u64 ticks;
  if (read(l->timer, &ticks, sizeof(ticks)) < 0 && errno != EAGAIN) return;
  pthread_mutex_lock(&l->lock);
  l->armed_ns = 0;
  while (l->n && l->heap[0]->deadline_ns <= clock_now_ns()) {
    struct evtimer *t = l->heap[0];
    heap_remove(l, t);
    l->running = t;
    pthread_mutex_unlock(&l->lock);
    t->fn(t);
    pthread_mutex_lock(&l->lock);
    l->running = NULL;
    pthread_cond_broadcast(&l->idle);
  }
  rearm(l);
  pthread_mutex_unlock(&l->lock);
}

static void run_watch(struct evloop *l, struct watch *w, u32 events) {
  pthread_mutex_lock(&l->lock);
  bool run = !w->dead;
  if (run) l->running_watch = w;
  pthread_mutex_unlock(&l->lock);
  if (!run) return;
  w->fn(w->arg, w->fd, events);
  pthread_mutex_lock(&l->lock);
  l->running_watch = NULL;
  pthread_cond_broadcast(&l->idle);
  pthread_mutex_unlock(&l->lock);
}

static void free_buried(struct evloop *l) {
  pthread_mutex_lock(&l->lock);
  struct watch *w = l->buried;
  l->buried = NULL;
  pthread_mutex_unlock(&l->lock);
  while (w) {
    struct watch *next = w->next;
    free(w);
    w = next;
  }
}

static void *loop_main(void *arg) {
  struct evloop *l = arg;
  struct epoll_event events[32];
  while (!__atomic_load_n(&l->stop, __ATOMIC_ACQUIRE)) {
    int n = epoll_wait(l->epoll, events, 32, -1);
    bool timers = false;
    for (int i = 0; i < n; i++) {
      if (events[i].data.ptr == &l->timer) timers = true;
      else if (events[i].data.ptr != &l->wake) run_watch(l, events[i].data.ptr, events[i].events);
    }
    if (timers) run_timers(l);
    free_buried(l);
  }
  return NULL;
}

static int add(int epoll, int fd, u32 events, void *ptr) {
  struct epoll_event ev = {.events = events, .data.ptr = ptr};
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

struct evloop *evloop_create(const char *thread_name) {
  struct evloop *l = calloc(1, sizeof(*l));
  if (!l) return NULL;
  pthread_mutex_init(&l->lock, NULL);
  pthread_cond_init(&l->idle, NULL);
  l->epoll = epoll_create1(EPOLL_CLOEXEC);
  l->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (l->epoll < 0 || l->timer < 0 || l->wake < 0 || add(l->epoll, l->timer, EPOLLIN, &l->timer) || add(l->epoll, l->wake, EPOLLIN, &l->wake))
    goto fail;
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int r = pthread_create(&l->thread, NULL, loop_main, l);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (r) goto fail;
  pthread_setname_np(l->thread, thread_name);
  return l;
fail:
  if (l->epoll >= 0) close(l->epoll);
  if (l->timer >= 0) close(l->timer);
  if (l->wake >= 0) close(l->wake);
  free(l);
  return NULL;
}

void evloop_destroy(struct evloop *l) {
  if (!l) return;
  __atomic_store_n(&l->stop, true, __ATOMIC_RELEASE);
  u64 one = 1;
  if (write(l->wake, &one, sizeof(one)) < 0) return;
  pthread_join(l->thread, NULL);
  free_buried(l);
  for (struct watch *w = l->watches, *next; w; w = next) next = w->next, free(w);
  close(l->epoll);
  close(l->timer);
  close(l->wake);
  free(l->heap);
  pthread_mutex_destroy(&l->lock);
  pthread_cond_destroy(&l->idle);
  free(l);
}

void evtimer_init(struct evtimer *t, struct evloop *loop, void (*fn)(struct evtimer *t)) {
  *t = (struct evtimer){.loop = loop, .fn = fn, .heap_index = -1};
}

void evtimer_arm(struct evtimer *t, u64 deadline_ns) {
  struct evloop *l = t->loop;
  pthread_mutex_lock(&l->lock);
  if (!deadline_ns) deadline_ns = 1;
  t->deadline_ns = deadline_ns;
  if (t->heap_index < 0) {
    if (l->n == l->room) {
      int room = l->room ? 2 * l->room : 16;
      struct evtimer **heap = realloc(l->heap, (size_t)room * sizeof(*heap));
      if (!heap) abort(); /* 16 bytes per vCPU: there is nothing sensible left to do */
      l->heap = heap;
      l->room = room;
    }
    heap_put(l, l->n++, t);
  }
  sift(l, t->heap_index);
  rearm(l);
  pthread_mutex_unlock(&l->lock);
}

void evtimer_cancel(struct evtimer *t, bool wait) {
  struct evloop *l = t->loop;
  if (!l) return;
  pthread_mutex_lock(&l->lock);
  if (t->heap_index >= 0) heap_remove(l, t);
  while (wait && l->running == t && !pthread_equal(pthread_self(), l->thread)) pthread_cond_wait(&l->idle, &l->lock);
  pthread_mutex_unlock(&l->lock);
}

int evloop_add_fd(struct evloop *l, int fd, u32 epoll_events, evfd_fn *fn, void *arg) {
  struct watch *w = calloc(1, sizeof(*w));
  if (!w) return -ENOMEM;
  *w = (struct watch){.fd = fd, .fn = fn, .arg = arg};
  pthread_mutex_lock(&l->lock);
  w->next = l->watches;
  l->watches = w;
  pthread_mutex_unlock(&l->lock);
  int r = add(l->epoll, fd, epoll_events, w);
  if (r) evloop_del_fd(l, fd);
  return r;
}

void evloop_del_fd(struct evloop *l, int fd) {
  epoll_ctl(l->epoll, EPOLL_CTL_DEL, fd, NULL);
  pthread_mutex_lock(&l->lock);
  struct watch **at = &l->watches;
  while (*at && (*at)->fd != fd) at = &(*at)->next;
  struct watch *w = *at;
  if (w) {
    *at = w->next;
    w->dead = true;
    while (l->running_watch == w && !pthread_equal(pthread_self(), l->thread)) pthread_cond_wait(&l->idle, &l->lock);
    /* The loop may hold the event in its array: it frees the watch when it is through with it. */
    w->next = l->buried;
    l->buried = w;
  }
  pthread_mutex_unlock(&l->lock);
}

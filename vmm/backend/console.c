/* Consoles: queues between a serial device and the host's terminal, pseudo-terminal or file.
 *
 * Output is batched: a line, a quarter of the queue, or 10 ms, whichever comes first, is one write(2). */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "vmm/backend/console_priv.h"
#include "vmm/loop.h"
#include "vmm/vmm.h"

enum { FLUSH_AT = CONSOLE_OUTPUT / 4, FLUSH_DELAY_NS = 10000000, WRITE_MAX = 4096, ESCAPE_KEY = 1 /* Ctrl-A */ };

static int none_open(struct console *con, const char *path, char *err) {
  return 0;
}
static const struct console_kind console_kind_none = {"none", false, NULL, none_open, NULL};

static const struct console_kind *const kinds[] = {&console_kind_stdio, &console_kind_pty, &console_kind_file,
                                                   &console_kind_none};

int console_fail(char *err, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(err, CONSOLE_ERR_LEN, fmt, ap);
  va_end(ap);
  return -1;
}

/* Finds the kind that spec names; *path is what follows "=", NULL for kinds without one. */
static const struct console_kind *find_kind(const char *spec, const char **path, char *err) {
  for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
    size_t len = strlen(kinds[i]->name);
    if (strncmp(spec, kinds[i]->name, len) != 0) continue;
    *path = NULL;
    if (!kinds[i]->takes_path && spec[len] == 0) return kinds[i];
    *path = spec + len + 1;
    if (kinds[i]->takes_path && spec[len] == '=' && **path) return kinds[i];
  }
  console_fail(err, "the console '%s' is none of stdio, pty, file=PATH, none", spec);
  return NULL;
}

bool console_spec_ok(const char *spec, char err[CONSOLE_ERR_LEN]) {
  const char *path;
  return find_kind(spec, &path, err) != NULL;
}

int console_check(const char *spec, char err[CONSOLE_ERR_LEN]) {
  const char *path;
  const struct console_kind *kind = find_kind(spec, &path, err);
  if (!kind) return -1;
  return kind->check ? kind->check(path, err) : 0;
}

static uint64_t now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- output ---- */

static void on_output_ready(void *opaque, int fd, uint32_t events);

/* Watches out_fd for room; where epoll cannot (regular files never block) nothing is to be waited for. */
static void wait_for_output(struct console *con) {
  if (con->out_blocked) return;
  con->out_blocked = vmm_loop_add(con->loop, con->out_fd, EPOLLOUT, on_output_ready, con) == 0;
}

/* Writes what the descriptor takes without blocking; lock held. */
static void drain_output(struct console *con) {
  size_t done = 0;
  while (done < con->out_len) {
    struct pollfd p = {.fd = con->out_fd, .events = POLLOUT};
    if (poll(&p, 1, 0) == 0) break;
    size_t n = con->out_len - done < WRITE_MAX ? con->out_len - done : WRITE_MAX;
    ssize_t r = write(con->out_fd, con->out + done, n);
    if (r < 0 && errno == EINTR) continue;
    if (r < 0 && errno == EAGAIN) break;
    done += r < 0 ? con->out_len - done : (size_t)r; /* a reader that is gone must not stop the guest */
  }
  con->out_len -= done;
  memmove(con->out, con->out + done, con->out_len);
  if (con->out_len) wait_for_output(con);
}

/* con->lock is not held: vmm->lock comes first. */
static void call_device(struct console *con, void (*fn)(void *dev)) {
  vmm_lock(con->vmm);
  fn(con->dev);
  vmm_unlock(con->vmm);
}

/* Ends a wait of the device for room; lock held on entry, released on return. */
static void unlock_and_tell(struct console *con) {
  bool tell = con->starved && con->out_len < CONSOLE_OUTPUT / 2 && con->on_room;
  if (tell) con->starved = false;
  pthread_mutex_unlock(&con->lock);
  if (tell) call_device(con, con->on_room);
}

static void on_output_ready(void *opaque, int fd, uint32_t events) {
  struct console *con = opaque;
  pthread_mutex_lock(&con->lock);
  vmm_loop_del(con->loop, con->out_fd);
  con->out_blocked = false;
  drain_output(con);
  unlock_and_tell(con);
}

static void on_flush_timer(void *opaque) {
  struct console *con = opaque;
  pthread_mutex_lock(&con->lock);
  con->timer_armed = false;
  if (!con->out_blocked) drain_output(con);
  unlock_and_tell(con);
}

static void drop_oldest(struct console *con, size_t need) {
  size_t drop = need > con->out_len ? con->out_len : need;
  con->out_len -= drop;
  memmove(con->out, con->out + drop, con->out_len);
}

size_t console_write(struct console *con, const void *data, size_t len) {
  if (con->out_fd < 0) return len;
  pthread_mutex_lock(&con->lock);
  if (len > CONSOLE_OUTPUT - con->out_len && !con->out_blocked) drain_output(con);
  if (len > CONSOLE_OUTPUT - con->out_len && con->drop) drop_oldest(con, len - (CONSOLE_OUTPUT - con->out_len));
  size_t n = len < CONSOLE_OUTPUT - con->out_len ? len : CONSOLE_OUTPUT - con->out_len;
  memcpy(con->out + con->out_len, data, n);
  con->out_len += n;
  if (n < len) con->starved = true;
  bool now = con->out_len >= FLUSH_AT || (n && memchr(data, '\n', n));
  if (now && !con->out_blocked) drain_output(con);
  if (con->out_len && !con->out_blocked && !con->timer_armed) {
    con->timer_armed = true;
    vmm_timer_arm(con->timer, now_ns() + FLUSH_DELAY_NS);
  }
  pthread_mutex_unlock(&con->lock);
  return n;
}

bool console_has_room(struct console *con) {
  if (con->out_fd < 0 || con->drop) return true;
  pthread_mutex_lock(&con->lock);
  bool room = con->out_len < CONSOLE_OUTPUT;
  if (!room) con->starved = true;
  pthread_mutex_unlock(&con->lock);
  return room;
}

void console_flush(struct console *con) {
  pthread_mutex_lock(&con->lock);
  drain_output(con);
  pthread_mutex_unlock(&con->lock);
}

/* ---- input ---- */

static const char help[] = "\nuvirt: Ctrl-A x  quit\nuvirt: Ctrl-A h  this help\nuvirt: Ctrl-A Ctrl-A  send Ctrl-A\n";

/* The key after Ctrl-A.  Returns whether the byte goes to the guest. */
static bool escape_command(struct console *con, uint8_t key) {
  if (key == 'x' || key == 'X') vmm_end(con->vmm, VMM_END_QUIT, "the user pressed Ctrl-A x");
  if (key == 'h' || key == 'H' || key == '?') {
    ssize_t ignored = write(STDERR_FILENO, help, sizeof(help) - 1);
    (void)ignored;
  }
  return key == ESCAPE_KEY;
}

/* Takes out what is meant for the VMM; returns the length of what is left for the guest. */
static size_t filter_escapes(struct console *con, uint8_t *data, size_t len) {
  size_t kept = 0;
  if (!con->escapes) return len;
  for (size_t i = 0; i < len; i++) {
    bool keep = !con->escape_seen && data[i] != ESCAPE_KEY;
    bool begins = !con->escape_seen && data[i] == ESCAPE_KEY;
    if (con->escape_seen) keep = escape_command(con, data[i]);
    con->escape_seen = begins;
    if (keep) data[kept++] = data[i];
  }
  return kept;
}

static void push_input(struct console *con, const uint8_t *data, size_t len) {
  for (size_t i = 0; i < len; i++) con->in[(con->in_head + con->in_len + i) % CONSOLE_INPUT] = data[i];
  con->in_len += len;
}

/* Reads what fits; lock held.  False at the end of input. */
static bool fill_input(struct console *con) {
  uint8_t chunk[CONSOLE_INPUT];
  size_t room = CONSOLE_INPUT - con->in_len;
  if (room == 0) return true;
  ssize_t n = read(con->in_fd, chunk, room);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n <= 0) return false;
  push_input(con, chunk, filter_escapes(con, chunk, (size_t)n));
  return true;
}

static void unwatch_input(struct console *con) {
  if (con->in_watched) vmm_loop_del(con->loop, con->in_fd);
  con->in_watched = false;
}

static void on_input_ready(void *opaque, int fd, uint32_t events) {
  struct console *con = opaque;
  pthread_mutex_lock(&con->lock);
  if (!fill_input(con)) { /* the end of input does not end the machine */
    con->in_eof = true;
    unwatch_input(con);
  }
  if (con->in_len == CONSOLE_INPUT) unwatch_input(con); /* until console_read() makes room */
  bool tell = con->in_len > 0 && con->on_input;
  pthread_mutex_unlock(&con->lock);
  if (tell) call_device(con, con->on_input);
}

static void watch_input(struct console *con) {
  if (con->in_watched || con->in_eof || con->in_fd < 0 || con->in_plain) return;
  int r = vmm_loop_add(con->loop, con->in_fd, EPOLLIN, on_input_ready, con);
  if (r == -EPERM) con->in_plain = true; /* a regular file: always readable */
  con->in_watched = r == 0;
}

size_t console_read(struct console *con, void *data, size_t len) {
  uint8_t *p = data;
  size_t n = 0;
  if (con->in_fd < 0) return 0;
  pthread_mutex_lock(&con->lock);
  if (con->in_plain && !con->in_eof && con->in_len == 0 && !fill_input(con)) con->in_eof = true;
  while (n < len && con->in_len > 0) {
    p[n++] = con->in[con->in_head];
    con->in_head = (con->in_head + 1) % CONSOLE_INPUT;
    con->in_len--;
  }
  watch_input(con);
  pthread_mutex_unlock(&con->lock);
  return n;
}

/* ---- life ---- */

void console_attach(struct console *con, void (*on_input)(void *dev), void (*on_room)(void *dev), void *dev) {
  con->on_input = on_input;
  con->on_room = on_room;
  con->dev = dev;
  pthread_mutex_lock(&con->lock);
  watch_input(con);
  pthread_mutex_unlock(&con->lock);
}

static void release(struct console *con) {
  if (con->kind->close) con->kind->close(con);
  if (con->own_in && con->in_fd >= 0) close(con->in_fd);
  if (con->own_out && con->out_fd >= 0 && con->out_fd != con->in_fd) close(con->out_fd);
  if (con->keep_fd >= 0) close(con->keep_fd);
  vmm_timer_destroy(con->timer);
  pthread_mutex_destroy(&con->lock);
  free(con);
}

struct console *console_open(struct vmm *vmm, const char *spec, char err[CONSOLE_ERR_LEN]) {
  const char *path;
  const struct console_kind *kind = find_kind(spec, &path, err);
  struct console *con = kind ? calloc(1, sizeof(*con)) : NULL;
  if (!con) {
    if (kind) console_fail(err, "out of memory");
    return NULL;
  }
  con->kind = kind;
  con->vmm = vmm;
  con->loop = vmm_event_loop(vmm);
  con->in_fd = con->out_fd = con->keep_fd = -1;
  pthread_mutex_init(&con->lock, NULL);
  con->timer = vmm_timer_create(con->loop, on_flush_timer, con);
  if (!con->timer)
    console_fail(err, "out of memory");
  else if (kind->open(con, path, err) == 0)
    return con;
  release(con);
  return NULL;
}

void console_close(struct console *con) {
  if (!con) return;
  pthread_mutex_lock(&con->lock);
  unwatch_input(con);
  if (con->out_blocked) vmm_loop_del(con->loop, con->out_fd);
  for (int tries = 0; con->out_len && tries < 100; tries++) {
    struct pollfd p = {.fd = con->out_fd, .events = POLLOUT};
    poll(&p, 1, 10);
    con->out_blocked = true; /* no watching of the loop any more */
    drain_output(con);
  }
  pthread_mutex_unlock(&con->lock);
  release(con);
}

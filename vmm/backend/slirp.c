/* User-mode networking behind virtio-net: libslirp, driven by the network device's thread.
 *
 * The guest sees 10.0.2.0/24 with the host at .2, DNS at .3 and DHCP from .15 on.
 */
#include "vmm/backend/slirp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct slirp_timer {
  struct slirp_timer *next;
  SlirpTimerCb fn;
  void *opaque;
  int64_t deadline_ms; /* INT64_MAX: not armed */
};

struct user_net {
  struct net_backend be; /* first */
  Slirp *slirp;
  struct slirp_timer *timers;
  bool filled;                  /* slirp was asked for its descriptors in this round */
  struct net_poll *set;         /* while slirp fills it */
  const struct net_poll *ready; /* while slirp looks at it */
  uint8_t frame[NET_FRAME_MAX];
};

/* ---- callbacks of libslirp ---- */

static ssize_t on_packet(const void *frame, size_t len, void *opaque) {
  struct user_net *net = opaque;
  net->be.sink.receive(net->be.sink.opaque, NULL, frame, len);
  return len;
}

static void on_guest_error(const char *text, void *opaque) {}

static int64_t clock_ns(void *opaque) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static int64_t clock_ms(void) {
  return clock_ns(NULL) / 1000000;
}

static void *timer_new(SlirpTimerCb fn, void *fn_opaque, void *opaque) {
  struct user_net *net = opaque;
  struct slirp_timer *timer = malloc(sizeof *timer);
  if (!timer) return NULL;
  *timer = (struct slirp_timer){.next = net->timers, .fn = fn, .opaque = fn_opaque, .deadline_ms = INT64_MAX};
  net->timers = timer;
  return timer;
}

static void timer_free(void *handle, void *opaque) {
  struct user_net *net = opaque;
  for (struct slirp_timer **at = &net->timers; *at; at = &(*at)->next) {
    if (*at != handle) continue;
    *at = (*at)->next;
    free(handle);
    return;
  }
}

static void timer_mod(void *handle, int64_t deadline_ms, void *opaque) {
  struct slirp_timer *timer = handle;
  if (timer) timer->deadline_ms = deadline_ms;
}

/* Descriptors are asked for in every round, and everything runs on one thread: nothing to register, nobody to wake. */
static void register_fd(int fd, void *opaque) {}
static void notify(void *opaque) {}

static const SlirpCb callbacks = {
    .send_packet = on_packet,
    .guest_error = on_guest_error,
    .clock_get_ns = clock_ns,
    .timer_new = timer_new,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = register_fd,
    .unregister_poll_fd = register_fd,
    .notify = notify,
};

/* ---- waiting ---- */

static const struct {
  int slirp;
  short poll;
} event_bits[] = {{SLIRP_POLL_IN, POLLIN},
                  {SLIRP_POLL_OUT, POLLOUT},
                  {SLIRP_POLL_PRI, POLLPRI},
                  {SLIRP_POLL_ERR, POLLERR},
                  {SLIRP_POLL_HUP, POLLHUP}};

static int add_poll(int fd, int events, void *opaque) {
  struct user_net *net = opaque;
  short wanted = 0;
  for (unsigned i = 0; i < sizeof event_bits / sizeof event_bits[0]; i++)
    if (events & event_bits[i].slirp) wanted |= event_bits[i].poll;
  return net_poll_add(net->set, fd, wanted);
}

static int get_revents(int index, void *opaque) {
  struct user_net *net = opaque;
  int events = 0;
  if (index < 0) return 0;
  for (unsigned i = 0; i < sizeof event_bits / sizeof event_bits[0]; i++)
    if (net->ready->fd[index].revents & event_bits[i].poll) events |= event_bits[i].slirp;
  return events;
}

static void limit_timeout(struct net_poll *set, int64_t ms) {
  if (ms < 0) ms = 0;
  if (ms < INT32_MAX && (set->timeout_ms < 0 || ms < set->timeout_ms)) set->timeout_ms = ms;
}

/* While the guest does not take frames the sockets are left alone: their senders wait, as TCP means them to. */
static void user_fill(struct net_backend *be, struct net_poll *set, bool hungry) {
  struct user_net *net = (struct user_net *)be;
  net->filled = hungry;
  if (!hungry) return;
  uint32_t timeout = UINT32_MAX;
  net->set = set;
  slirp_pollfds_fill(net->slirp, &timeout, add_poll, net);
  net->set = NULL;
  if (timeout != UINT32_MAX) limit_timeout(set, timeout);
  for (const struct slirp_timer *timer = net->timers; timer; timer = timer->next)
    if (timer->deadline_ms != INT64_MAX) limit_timeout(set, timer->deadline_ms - clock_ms());
}

/* A callback may free or make timers, so the list is looked through from its start after each. */
static void run_timers(struct user_net *net) {
  int64_t now = clock_ms();
  struct slirp_timer *timer = net->timers;
  while (timer) {
    if (timer->deadline_ms > now) {
      timer = timer->next;
      continue;
    }
    timer->deadline_ms = INT64_MAX;
    timer->fn(timer->opaque);
    timer = net->timers;
  }
}

static void user_polled(struct net_backend *be, const struct net_poll *set) {
  struct user_net *net = (struct user_net *)be;
  if (net->filled) {
    net->ready = set;
    slirp_pollfds_poll(net->slirp, 0, get_revents, net);
    net->ready = NULL;
  }
  run_timers(net);
}

static void user_send(struct net_backend *be, const struct iovec *iov, unsigned count) {
  struct user_net *net = (struct user_net *)be;
  size_t len = 0, skip = NET_HEADER_LEN;
  for (unsigned i = 0; i < count; i++) {
    size_t drop = skip < iov[i].iov_len ? skip : iov[i].iov_len, piece = iov[i].iov_len - drop;
    skip -= drop;
    if (piece > sizeof net->frame - len) return; /* longer than any frame: lost */
    memcpy(net->frame + len, (const uint8_t *)iov[i].iov_base + drop, piece);
    len += piece;
  }
  slirp_input(net->slirp, net->frame, len);
}

static void user_negotiated(struct net_backend *be, uint64_t features) {}

/* ---- life ---- */

static void user_destroy(struct net_backend *be) {
  struct user_net *net = (struct user_net *)be;
  if (net->slirp) slirp_cleanup(net->slirp);
  while (net->timers) timer_free(net->timers, net);
  free(net);
}

static const struct net_backend_ops user_ops = {
    .fill = user_fill, .polled = user_polled, .send = user_send, .negotiated = user_negotiated, .destroy = user_destroy};

static Slirp *make_slirp(struct user_net *net, const struct slirp_options *options) {
  SlirpConfig config = {
      .version = 1,
      .restricted = options->restricted,
      .in_enabled = true,
      .in6_enabled = options->ipv6,
      .vprefix_len = 64,
      .vhostname = "uvirt",
  };
  inet_pton(AF_INET, "10.0.2.0", &config.vnetwork);
  inet_pton(AF_INET, "255.255.255.0", &config.vnetmask);
  inet_pton(AF_INET, "10.0.2.2", &config.vhost);
  inet_pton(AF_INET, "10.0.2.3", &config.vnameserver);
  inet_pton(AF_INET, "10.0.2.15", &config.vdhcp_start);
  inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
  inet_pton(AF_INET6, "fec0::2", &config.vhost6);
  inet_pton(AF_INET6, "fec0::3", &config.vnameserver6);
  return slirp_new(&config, &callbacks, net);
}

static int add_forward(struct user_net *net, const struct slirp_forward *f, char err[NET_ERR_MAX]) {
  if (slirp_add_hostfwd(net->slirp, f->udp, f->host_addr, f->host_port, f->guest_addr, f->guest_port) == 0) return 0;
  int error = errno ? errno : EIO;
  char host[INET_ADDRSTRLEN];
  inet_ntop(AF_INET, &f->host_addr, host, sizeof host);
  snprintf(err, NET_ERR_MAX, "The %s port %s:%u of the host cannot be forwarded: %s.", f->udp ? "UDP" : "TCP", host, f->host_port,
           strerror(error));
  return -error;
}

int slirp_check(const char *spec, char err[NET_ERR_MAX]) {
  struct slirp_options options;
  return slirp_options_parse(spec, &options, err);
}

int slirp_open(const char *spec, struct net_backend **out, char err[NET_ERR_MAX]) {
  struct slirp_options options;
  int r = slirp_options_parse(spec, &options, err);
  if (r < 0) return r;
  struct user_net *net = calloc(1, sizeof *net);
  if (net) {
    net->be.ops = &user_ops;
    net->slirp = make_slirp(net, &options);
  }
  if (!net || !net->slirp) {
    snprintf(err, NET_ERR_MAX, "User networking cannot be started: no memory.");
    r = -ENOMEM;
  }
  for (unsigned i = 0; r == 0 && i < options.forwards; i++) r = add_forward(net, &options.forward[i], err);
  if (r < 0) {
    if (net) user_destroy(&net->be);
    return r;
  }
  *out = &net->be;
  return 0;
}

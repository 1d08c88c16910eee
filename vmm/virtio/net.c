/* virtio-net: one queue pair over a network back end, both served by a thread of their own.
 *
 * VIRTIO 1.2, section 5.1.
 */
#include "vmm/virtio/device.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include <linux/if_ether.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>

#include "vmm/backend/net.h"

enum {
  RECEIVE = 0,
  TRANSMIT = 1,
  QUEUE_SIZE = 256,
  TRANSMIT_BUDGET = 64, /* frames before the back end is looked at again */
  BACKLOG_FRAMES = 512, /* frames kept while the guest has no receive buffers; then they are dropped */
  BACKLOG_BYTES = 1 << 20,
};

struct frame {
  struct frame *next;
  struct virtio_net_hdr_mrg_rxbuf header;
  size_t len;
  uint8_t data[];
};

struct virtio_net {
  struct virtio_dev dev; /* first */
  struct net_backend *be;
  pthread_t thread;
  bool thread_runs;
  atomic_bool quit;
  bool settled; /* [dev.lock] the back end knows the driver's features; until then frames are dropped */
  /* the thread's own */
  struct net_poll set;
  struct frame *backlog, **backlog_end;
  unsigned backlog_frames;
  size_t backlog_bytes;
  bool transmit_more; /* the budget ran out */
  bool received;      /* frames were delivered in this round: an interrupt is due */
  struct virtq_chain first, chain;
};

_Static_assert(sizeof(struct virtio_net_hdr_mrg_rxbuf) == NET_HEADER_LEN, "the header with num_buffers (5.1.6)");

/* ---- receiving: host to guest; dev.lock is held ---- */

enum outcome { DELIVERED, NO_BUFFERS };

/* The chains that one frame is spread over (5.1.6.4). */
struct placement {
  unsigned count;
  uint16_t head[QUEUE_SIZE];
  uint32_t written[QUEUE_SIZE];
};

/* Copies [offset, ...) of header and frame to a chain; returns the bytes that fitted. */
static size_t place(const struct virtq_chain *chain, const struct virtio_net_hdr_mrg_rxbuf *header, const uint8_t *frame,
                    size_t len, size_t offset) {
  size_t done = 0;
  if (offset < NET_HEADER_LEN) {
    done = virtq_copy_to(chain, 0, (const uint8_t *)header + offset, NET_HEADER_LEN - offset);
    offset += done;
    if (offset < NET_HEADER_LEN) return done;
  }
  return done + virtq_copy_to(chain, done, frame + (offset - NET_HEADER_LEN), len - (offset - NET_HEADER_LEN));
}

static void break_ring(struct virtio_queue *queue, struct virtq *ring, const char *why) {
  ring->broken = why;
  virtio_check_locked(queue);
}

/* Takes chains until the frame is placed.  Without mergeable buffers it must fit the first one, else it is dropped. */
static enum outcome spread(struct virtio_net *net, struct virtq *ring, struct virtio_net_hdr_mrg_rxbuf *header,
                           const uint8_t *frame, size_t len, struct placement *to) {
  bool mergeable = virtio_has(&net->dev, VIRTIO_NET_F_MRG_RXBUF);
  size_t total = NET_HEADER_LEN + len;
  to->count = 0;
  for (size_t done = 0; done < total;) {
    struct virtq_chain *chain = to->count ? &net->chain : &net->first;
    if (to->count == ring->size) break;
    int r = virtq_pop(ring, chain);
    /* Kicks are asked for where the shortage is, before the chains are given back. */
    if (r == 0 && virtq_kicks_on(ring)) r = virtq_pop(ring, chain);
    if (r <= 0) {
      for (; to->count; to->count--) virtq_unpop(ring);
      return NO_BUFFERS;
    }
    to->head[to->count] = chain->head;
    to->written[to->count] = place(chain, header, frame, len, done);
    done += to->written[to->count++];
    bool too_small = !to->written[to->count - 1] || (to->count == 1 && done < NET_HEADER_LEN); /* 5.1.6.3.1 */
    if (too_small) {
      break_ring(&net->dev.queue[RECEIVE], ring, "a receive buffer too small for its header");
      return DELIVERED;
    }
    if (done == total) return DELIVERED;
    if (!mergeable) break;
  }
  /* Too large for what the driver provides: dropped. */
  for (; to->count; to->count--) virtq_unpop(ring);
  return DELIVERED;
}

static enum outcome deliver(struct virtio_net *net, const struct virtio_net_hdr_mrg_rxbuf *from, const uint8_t *frame,
                            size_t len) {
  struct virtio_queue *queue = &net->dev.queue[RECEIVE];
  struct virtq *ring = virtio_ring_locked(queue);
  struct virtio_net_hdr_mrg_rxbuf header = *from;
  struct placement to;
  if (!ring || !net->settled) return DELIVERED; /* nobody listens: lost, as on a wire */
  enum outcome outcome = spread(net, ring, &header, frame, len, &to);
  virtio_check_locked(queue);
  if (outcome == NO_BUFFERS) return NO_BUFFERS;
  if (!to.count || !virtio_ring_locked(queue)) return DELIVERED;
  uint16_t buffers = to.count; /* 1 without mergeable buffers (5.1.6.4.1) */
  virtq_copy_to(&net->first, offsetof(struct virtio_net_hdr_mrg_rxbuf, num_buffers), &buffers, sizeof buffers);
  for (unsigned i = 0; i < to.count; i++) virtq_fill(ring, to.head[i], to.written[i], i);
  virtq_publish(ring, to.count);
  virtq_kicks_off(ring);
  net->received = true;
  return DELIVERED;
}

/* ---- the backlog ---- */

static void backlog_add(struct virtio_net *net, const struct virtio_net_hdr_mrg_rxbuf *header, const void *data, size_t len) {
  if (net->backlog_frames == BACKLOG_FRAMES || net->backlog_bytes + len > BACKLOG_BYTES) return;
  struct frame *frame = malloc(sizeof *frame + len);
  if (!frame) return;
  frame->next = NULL;
  frame->header = *header;
  frame->len = len;
  memcpy(frame->data, data, len);
  *net->backlog_end = frame;
  net->backlog_end = &frame->next;
  net->backlog_frames++;
  net->backlog_bytes += len;
}

static void backlog_drop_first(struct virtio_net *net) {
  struct frame *frame = net->backlog;
  net->backlog = frame->next;
  if (!net->backlog) net->backlog_end = &net->backlog;
  net->backlog_frames--;
  net->backlog_bytes -= frame->len;
  free(frame);
}

static void backlog_deliver(struct virtio_net *net) {
  pthread_mutex_lock(&net->dev.lock);
  while (net->backlog && deliver(net, &net->backlog->header, net->backlog->data, net->backlog->len) == DELIVERED)
    backlog_drop_first(net);
  pthread_mutex_unlock(&net->dev.lock);
}

static bool wants_more(void *opaque) {
  return !((struct virtio_net *)opaque)->backlog;
}

static void receive(void *opaque, const void *from, const void *frame, size_t len) {
  struct virtio_net *net = opaque;
  struct virtio_net_hdr_mrg_rxbuf header = {0};
  if (from) memcpy(&header, from, sizeof header);
  if (len < ETH_HLEN || len > NET_FRAME_MAX) return;
  bool delivered = false;
  if (!net->backlog) {
    pthread_mutex_lock(&net->dev.lock);
    delivered = deliver(net, &header, frame, len) == DELIVERED;
    pthread_mutex_unlock(&net->dev.lock);
  }
  if (!delivered) backlog_add(net, &header, frame, len);
}

/* ---- transmitting: guest to host ---- */

static bool transmit_one(struct virtio_net *net, struct virtio_queue *queue) {
  struct virtq_chain *chain = &net->chain;
  if (!virtio_pop(queue, chain)) return false;
  if (chain->readable_len < NET_HEADER_LEN) {
    virtio_reject(queue, "a frame without its header");
    return false;
  }
  uint64_t len = chain->readable_len - NET_HEADER_LEN;
  if (len >= ETH_HLEN && len <= NET_FRAME_MAX) {
    /* The back end may answer at once through receive(), which uses net->chain: keep what is needed of it. */
    struct iovec iov[VIRTQ_CHAIN_MAX];
    uint16_t head = chain->head, count = chain->readable;
    memcpy(iov, chain->iov, count * sizeof *iov);
    net->be->ops->send(net->be, iov, count);
    virtio_push(queue, head, 0);
    return true;
  }
  virtio_push(queue, chain->head, 0);
  return true;
}

static void transmit(struct virtio_net *net) {
  struct virtio_queue *queue = &net->dev.queue[TRANSMIT];
  unsigned left = TRANSMIT_BUDGET;
  virtio_kicks_off(queue);
  while (left && transmit_one(net, queue)) left--;
  if (left < TRANSMIT_BUDGET) virtio_interrupt(queue);
  net->transmit_more = virtio_kicks_on(queue);
}

/* ---- the thread ---- */

int net_poll_add(struct net_poll *set, int fd, short events) {
  if (set->count == set->capacity) {
    unsigned capacity = set->capacity ? 2 * set->capacity : 16;
    struct pollfd *bigger = realloc(set->fd, capacity * sizeof *bigger);
    if (!bigger) return -1;
    set->fd = bigger;
    set->capacity = capacity;
  }
  set->fd[set->count] = (struct pollfd){.fd = fd, .events = events};
  return set->count++;
}

/* Takes over the features of a driver that has just come up; what was meant for its predecessor is dropped. */
static void settle(struct virtio_net *net) {
  pthread_mutex_lock(&net->dev.lock);
  if (!net->settled && net->dev.running) {
    net->be->ops->negotiated(net->be, net->dev.acked);
    net->settled = true;
    while (net->backlog) backlog_drop_first(net);
  }
  pthread_mutex_unlock(&net->dev.lock);
}

static bool take_kick(struct virtio_net *net, int index) {
  eventfd_t count;
  if (index < 0 || !net->set.fd[index].revents) return false;
  return eventfd_read(net->set.fd[index].fd, &count) == 0;
}

static void one_round(struct virtio_net *net) {
  struct virtio_queue *queue = net->dev.queue;
  net->set.count = 0;
  net->set.timeout_ms = net->transmit_more ? 0 : -1;
  int receive_kick = net_poll_add(&net->set, queue[RECEIVE].kick, POLLIN);
  int transmit_kick = net_poll_add(&net->set, queue[TRANSMIT].kick, POLLIN);
  net->be->ops->fill(net->be, &net->set, wants_more(net));
  int r = poll(net->set.fd, net->set.count, net->set.timeout_ms);
  if (r < 0)
    for (unsigned i = 0; i < net->set.count; i++) net->set.fd[i].revents = 0;
  settle(net);
  if (take_kick(net, receive_kick)) backlog_deliver(net);
  bool kicked = take_kick(net, transmit_kick);
  net->be->ops->polled(net->be, &net->set);
  if (kicked || net->transmit_more) transmit(net);
  if (net->received) virtio_interrupt(&queue[RECEIVE]);
  net->received = false;
}

static void *net_thread(void *arg) {
  struct virtio_net *net = arg;
  while (!atomic_load(&net->quit)) one_round(net);
  return NULL;
}

/* ---- life ---- */

static void net_stopped(struct virtio_dev *dev) {
  ((struct virtio_net *)dev)->settled = false;
}

static void net_destroy(struct virtio_dev *dev) {
  struct virtio_net *net = (struct virtio_net *)dev;
  if (net->thread_runs) {
    atomic_store(&net->quit, true);
    virtio_kick_self(&dev->queue[RECEIVE]);
    pthread_join(net->thread, NULL);
  }
  virtio_dev_fini(dev);
  if (net->be) net->be->ops->destroy(net->be);
  while (net->backlog) backlog_drop_first(net);
  free(net->set.fd);
  free(net);
}

static const struct virtio_ops net_ops = {
    .id = VIRTIO_ID_NET,
    .class_code = 0x020000, /* Ethernet controller */
    .queues = 2,
    .queue_size = {QUEUE_SIZE, QUEUE_SIZE},
    .stopped = net_stopped,
    .destroy = net_destroy,
};

/* The kinds of back end, by the word the specification starts with. */
static const struct kind {
  const char *word, *endings; /* what may follow the word */
  bool past_ending;           /* the back end's text starts behind that character */
  int (*open)(const char *text, struct net_backend **out, char err[NET_ERR_MAX]);
  int (*check)(const char *text, char err[NET_ERR_MAX]);
} kinds[] = {
    {"user", ",", false, slirp_open, slirp_check},
    {"tap", "=", true, tap_open, tap_check},
};

static const struct kind *find_kind(const char *spec, const char **text, char err[VIRTIO_ERR_MAX]) {
  for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    const struct kind *kind = &kinds[i];
    size_t len = strlen(kind->word);
    if (strncmp(spec, kind->word, len)) continue;
    bool ended = !spec[len] && !kind->past_ending;
    if (!ended && (!spec[len] || !strchr(kind->endings, spec[len]))) continue;
    *text = spec + len + kind->past_ending;
    return kind;
  }
  snprintf(err, VIRTIO_ERR_MAX, "The network '%.100s' is neither 'user[,hostfwd=...]' nor 'tap=NAME'.", spec);
  return NULL;
}

static void choose_mac(const struct virtio_net_options *options, uint8_t mac[6]) {
  static atomic_uint made;
  static const uint8_t first[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
  memcpy(mac, options->mac ? options->mac : first, 6);
  if (!options->mac) mac[5] += atomic_fetch_add(&made, 1);
}

static int net_init(struct virtio_net *net, struct vmm *vmm, const struct virtio_net_options *options) {
  struct virtio_net_config config = {.status = VIRTIO_NET_S_LINK_UP};
  choose_mac(options, config.mac);
  uint64_t features = 1ull << VIRTIO_NET_F_MAC | 1ull << VIRTIO_NET_F_STATUS | 1ull << VIRTIO_NET_F_MRG_RXBUF | net->be->features;
  net->backlog_end = &net->backlog;
  net->be->sink = (struct net_sink){.opaque = net, .receive = receive, .wants_more = wants_more};
  return virtio_dev_init(&net->dev, vmm, &net_ops, features, &config, offsetof(struct virtio_net_config, max_virtqueue_pairs));
}

int virtio_net_create(struct vmm *vmm, struct pci_host *host, const struct virtio_net_options *options,
                      char err[VIRTIO_ERR_MAX]) {
  const char *text;
  const struct kind *kind = find_kind(options->spec, &text, err);
  if (!kind) return -EINVAL;
  struct net_backend *be;
  int r = kind->open(text, &be, err);
  if (r < 0) return r;
  struct virtio_net *net = calloc(1, sizeof *net);
  if (!net) {
    be->ops->destroy(be);
    snprintf(err, VIRTIO_ERR_MAX, "No memory for the network device.");
    return -ENOMEM;
  }
  net->be = be;
  r = net_init(net, vmm, options);
  if (r == 0) r = virtio_thread_start(&net->thread, "network", net_thread, net);
  net->thread_runs = r == 0;
  if (r == 0) r = virtio_dev_add(&net->dev, host);
  if (r < 0) {
    snprintf(err, VIRTIO_ERR_MAX, "The network device cannot be attached: %s.", strerror(-r));
    net_destroy(&net->dev);
  }
  return r;
}

int virtio_net_check(const struct virtio_net_options *options, char err[VIRTIO_ERR_MAX]) {
  const char *text;
  const struct kind *kind = find_kind(options->spec, &text, err);
  return kind ? kind->check(text, err) : -EINVAL;
}

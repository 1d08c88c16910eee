/* KVM_IOEVENTFD: devices on the buses that swallow one write and signal. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "core/eventfd.h"
#include "core/iobus.h"
#include "core/ioeventfd.h"
#include "core/vm_priv.h"

struct ioeventfd {
  struct io_device dev;
  struct ioeventfd *next; /* [s] vm_priv.ioeventfds */
  enum io_bus_kind bus;
  u64 addr, datamatch;
  u32 length;    /* 0: any */
  bool wildcard; /* any data */
  struct client_eventfd eventfd;
};

/* The value of an access of 1, 2, 4 or 8 bytes. */
static u64 data_value(const void *data, unsigned len) {
  u64 v = 0;
  memcpy(&v, data, MIN(len, 8u)); /* little-endian host */
  return v;
}

static bool matches(const struct ioeventfd *e, u64 addr, unsigned len, const void *data) {
  if (addr != e->addr) return false;
  if (!e->length) return true;
  if (len != e->length) return false;
  return e->wildcard || data_value(data, len) == e->datamatch;
}

static int ioeventfd_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *data) {
  struct ioeventfd *e = container_of(dev, struct ioeventfd, dev);
  if (!matches(e, addr, len, data)) return -EOPNOTSUPP;
  client_eventfd_signal(&e->eventfd);
  return 0;
}

static const struct io_device_ops ioeventfd_ops = {.write = ioeventfd_write};

static bool collides(const struct ioeventfd *a, const struct ioeventfd *b) {
  if (a->bus != b->bus || a->addr != b->addr) return false;
  if (!a->length || !b->length) return true;
  return a->length == b->length && (a->wildcard || b->wildcard || a->datamatch == b->datamatch);
}

static void describe(struct ioeventfd *e, const struct kvm_ioeventfd *args) {
  e->dev.ops = &ioeventfd_ops;
  e->bus = args->flags & KVM_IOEVENTFD_FLAG_PIO ? BUS_PIO : BUS_MMIO;
  e->addr = args->addr;
  e->length = args->len;
  e->wildcard = !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH);
  e->datamatch = e->wildcard ? 0 : args->datamatch;
}

static int check_assign(const struct kvm_ioeventfd *args) {
  u32 known = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
  if (args->len > 8 || (args->len & (args->len - 1))) return trace_error(-EINVAL);
  if (args->addr + args->len < args->addr) return trace_error(-EINVAL);
  if (args->flags & ~known) return trace_error(-EINVAL);
  if (!args->len && (args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH)) return trace_error(-EINVAL);
  return 0;
}

static int insert_locked(struct vm *vm, struct ioeventfd *e) {
  for (const struct ioeventfd *o = vm->priv->ioeventfds; o; o = o->next)
    if (collides(o, e)) return -EEXIST;
  int r = io_bus_register_locked(vm, e->bus, e->addr, e->length, &e->dev, false);
  if (r) return r;
  e->next = vm->priv->ioeventfds;
  vm->priv->ioeventfds = e;
  return 0;
}

static int assign(struct vm *vm, const struct kvm_ioeventfd *args) {
  int r = check_assign(args);
  if (r) return r;
  struct ioeventfd *e = calloc(1, sizeof(*e));
  if (!e) return trace_error(-ENOMEM);
  describe(e, args);
  r = client_eventfd_get(args->fd, &e->eventfd);
  if (!r) {
    pthread_mutex_lock(&vm->slots_lock);
    r = insert_locked(vm, e);
    pthread_mutex_unlock(&vm->slots_lock);
    if (r) client_eventfd_put(&e->eventfd);
  }
  if (r) free(e);
  return r;
}

static bool same(const struct ioeventfd *a, const struct ioeventfd *b) {
  return a->bus == b->bus && a->eventfd.id == b->eventfd.id && a->addr == b->addr && a->length == b->length &&
         a->wildcard == b->wildcard && a->datamatch == b->datamatch;
}

static int remove_locked(struct vm *vm, const struct ioeventfd *wanted) {
  struct ioeventfd **p = &vm->priv->ioeventfds;
  while (*p && !same(*p, wanted)) p = &(*p)->next;
  struct ioeventfd *e = *p;
  if (!e) return -ENOENT;
  int r = io_bus_unregister_locked(vm, e->bus, &e->dev);
  if (r) return r;
  *p = e->next;
  client_eventfd_put(&e->eventfd);
  free(e);
  return 0;
}

static int deassign(struct vm *vm, const struct kvm_ioeventfd *args) {
  struct ioeventfd wanted = {0};
  describe(&wanted, args);
  int r = client_eventfd_id(args->fd, &wanted.eventfd.id);
  if (r) return r;
  pthread_mutex_lock(&vm->slots_lock);
  r = remove_locked(vm, &wanted);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

int vm_ioeventfd(struct vm *vm, const struct kvm_ioeventfd *args) {
  return args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN ? deassign(vm, args) : assign(vm, args);
}

void ioeventfds_destroy(struct vm *vm) {
  while (vm->priv->ioeventfds) {
    struct ioeventfd *e = vm->priv->ioeventfds;
    vm->priv->ioeventfds = e->next;
    client_eventfd_put(&e->eventfd);
    free(e); /* the bus that named it is gone already */
  }
}

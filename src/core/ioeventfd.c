/* KVM_IOEVENTFD: writes that signal an eventfd instead of leaving KVM_RUN. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/eventfd.h"
#include "core/iobus.h"

struct ioeventfd {
  struct io_device dev;
  struct ioeventfd *next; /* vm->ioeventfds, slots_lock of the list's own */
  struct vm *vm;
  enum io_bus_kind bus;
  u64 addr, datamatch;
  u32 len;
  bool wildcard; /* any data */
  int fd;        /* our duplicate */
  int users_fd;
};

static struct ioeventfd *list;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;

static bool in_range(const struct ioeventfd *p, u64 addr, unsigned len, const void *data) {
  u64 v = 0;
  if (addr != p->addr) return false;
  if (!p->len) return true;
  if (len != p->len) return false;
  if (p->wildcard) return true;
  memcpy(&v, data, len);
  return v == p->datamatch;
}

static int event_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *data) {
  struct ioeventfd *p = container_of(dev, struct ioeventfd, dev);
  if (!in_range(p, addr, len, data)) return -EOPNOTSUPP;
  u64 one = 1;
  return write(p->fd, &one, sizeof(one)) < 0 && errno != EAGAIN ? -EOPNOTSUPP : 0;
}

static void event_destroy(struct io_device *dev) {
  struct ioeventfd *p = container_of(dev, struct ioeventfd, dev);
  pthread_mutex_lock(&list_lock);
  for (struct ioeventfd **at = &list; *at; at = &(*at)->next)
    if (*at == p) {
      *at = p->next;
      break;
    }
  pthread_mutex_unlock(&list_lock);
  close(p->fd);
  free(p);
}

static const struct io_device_ops ops = {.write = event_write, .destroy = event_destroy};

static bool same_place(const struct ioeventfd *p, const struct ioeventfd *q) {
  return p->vm == q->vm && p->bus == q->bus && p->addr == q->addr;
}

static bool collides(const struct ioeventfd *p, const struct ioeventfd *q) {
  return same_place(p, q) && (!p->len || !q->len || (p->len == q->len && (p->wildcard || q->wildcard || p->datamatch == q->datamatch)));
}

static int assign(struct vm *vm, const struct kvm_ioeventfd *args, const struct ioeventfd *wanted) {
  struct ioeventfd *p = malloc(sizeof(*p));
  if (!p) return -ENOMEM;
  *p = *wanted;
  p->fd = fcntl(args->fd, F_DUPFD_CLOEXEC, 0);
  if (p->fd < 0) {
    free(p);
    return -EBADF;
  }
  pthread_mutex_lock(&list_lock);
  bool taken = false;
  for (struct ioeventfd *q = list; q; q = q->next) taken |= collides(p, q);
  if (!taken) {
    p->next = list;
    list = p;
  }
  pthread_mutex_unlock(&list_lock);
  if (taken) {
    close(p->fd);
    free(p);
    return -EEXIST;
  }
  int r = io_bus_register(vm, p->bus, p->addr, p->len, &p->dev);
  if (r) event_destroy(&p->dev);
  return r;
}

static int deassign(struct vm *vm, const struct ioeventfd *wanted) {
  pthread_mutex_lock(&list_lock);
  struct ioeventfd *p = list;
  while (p && !(same_place(p, wanted) && p->users_fd == wanted->users_fd && p->len == wanted->len && p->wildcard == wanted->wildcard &&
                (p->wildcard || p->datamatch == wanted->datamatch)))
    p = p->next;
  pthread_mutex_unlock(&list_lock);
  return p ? io_bus_unregister(vm, p->bus, &p->dev) : -ENOENT;
}

int vm_ioeventfd(struct vm *vm, const struct kvm_ioeventfd *args) {
  static const u32 valid = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
  if (args->flags & ~valid) return -EINVAL;
  switch (args->len) {
  case 0: case 1: case 2: case 4: case 8: break;
  default: return -EINVAL;
  }
  if (args->addr + args->len < args->addr) return -EINVAL;
  if (!args->len && (args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH)) return -EINVAL;
  struct ioeventfd wanted = {.dev.ops = &ops, .vm = vm, .bus = args->flags & KVM_IOEVENTFD_FLAG_PIO ? BUS_PIO : BUS_MMIO, .addr = args->addr,
                             .len = args->len, .datamatch = args->datamatch, .wildcard = !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH),
                             .users_fd = args->fd};
  return args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN ? deassign(vm, &wanted) : assign(vm, args, &wanted);
}

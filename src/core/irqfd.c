/* KVM_IRQFD: eventfds that raise interrupts, on the VM's service thread. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>
#include "base/evloop.h"
#include "core/core_priv.h"
#include "core/eventfd.h"
#include "core/route.h"

#define SOURCE_USER     0
#define SOURCE_RESAMPLE 2

struct irqfd {
  struct irqfd *next;
  struct vm *vm;
  int fd, users_fd;
  u32 gsi;
  int resample_fd; /* -1: edge */
  struct irq_ack_notifier ack;
};

struct irqfds {
  struct irqfd *list; /* vm->irq_lock */
};

static void fired(void *arg, int fd, u32 events) {
  struct irqfd *p = arg;
  u64 count;
  if (read(fd, &count, sizeof(count)) < 0) return;
  if (p->resample_fd >= 0) {
    vm_set_irq(p->vm, SOURCE_RESAMPLE, p->gsi, 1, false);
    return;
  }
  vm_set_irq(p->vm, SOURCE_USER, p->gsi, 1, false);
  vm_set_irq(p->vm, SOURCE_USER, p->gsi, 0, false);
}

/* The guest ended the interrupt: the line falls, and whoever still wants service raises it again. */
static void resampled(struct irq_ack_notifier *n) {
  struct irqfd *p = container_of(n, struct irqfd, ack);
  u64 one = 1;
  vm_set_irq(p->vm, SOURCE_RESAMPLE, p->gsi, 0, false);
  if (write(p->resample_fd, &one, sizeof(one)) < 0 && errno != EAGAIN) return;
}

static void irqfd_free(struct irqfd *p) {
  evloop_del_fd(p->vm->evloop, p->fd);
  if (p->resample_fd >= 0) {
    vm_unregister_ack_notifier(p->vm, &p->ack);
    close(p->resample_fd);
  }
  close(p->fd);
  free(p);
}

static int assign(struct vm *vm, const struct kvm_irqfd *args) {
  bool resample = args->flags & KVM_IRQFD_FLAG_RESAMPLE;
  if (resample && !vm->arch->irqchip_present(vm)) return -EINVAL;
  struct irqfd *p = calloc(1, sizeof(*p));
  if (!p) return -ENOMEM;
  *p = (struct irqfd){.vm = vm, .users_fd = (int)args->fd, .gsi = args->gsi, .resample_fd = -1, .ack = {.gsi = args->gsi, .acked = resampled}};
  p->fd = fcntl((int)args->fd, F_DUPFD_CLOEXEC, 0);
  int r = p->fd < 0 ? -EBADF : 0;
  if (!r && resample && (p->resample_fd = fcntl((int)args->resamplefd, F_DUPFD_CLOEXEC, 0)) < 0) r = -EBADF;
  pthread_mutex_lock(&vm->irq_lock);
  for (struct irqfd *q = vm->irqfds->list; !r && q; q = q->next)
    if (q->users_fd == p->users_fd) r = -EBUSY;
  if (!r) {
    p->next = vm->irqfds->list;
    vm->irqfds->list = p;
  }
  pthread_mutex_unlock(&vm->irq_lock);
  if (r) {
    if (p->fd >= 0) close(p->fd);
    if (p->resample_fd >= 0) close(p->resample_fd);
    free(p);
    return r;
  }
  if (resample) vm_register_ack_notifier(vm, &p->ack);
  return evloop_add_fd(vm->evloop, p->fd, EPOLLIN, fired, p);
}

static int deassign(struct vm *vm, const struct kvm_irqfd *args) {
  struct irqfd *gone = NULL;
  pthread_mutex_lock(&vm->irq_lock);
  for (struct irqfd **at = &vm->irqfds->list; *at;) {
    struct irqfd *p = *at;
    if (p->users_fd == (int)args->fd && p->gsi == args->gsi) {
      *at = p->next;
      p->next = gone;
      gone = p;
    } else {
      at = &p->next;
    }
  }
  pthread_mutex_unlock(&vm->irq_lock);
  for (struct irqfd *next; gone; gone = next) next = gone->next, irqfd_free(gone);
  return 0;
}

int vm_irqfd(struct vm *vm, const struct kvm_irqfd *args) {
  if (args->flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE)) return -EINVAL;
  if (args->flags & KVM_IRQFD_FLAG_DEASSIGN) return deassign(vm, args);
  if (!vm->arch->irqchip_present(vm)) return -EAGAIN;
  return assign(vm, args);
}

int routing_init_irqfds(struct vm *vm);
int routing_init_irqfds(struct vm *vm) {
  vm->irqfds = calloc(1, sizeof(*vm->irqfds));
  return vm->irqfds ? 0 : -ENOMEM;
}

void irqfds_destroy(struct vm *vm) {
  if (!vm->irqfds) return;
  for (struct irqfd *p = vm->irqfds->list, *next; p; p = next) next = p->next, irqfd_free(p);
  free(vm->irqfds);
  vm->irqfds = NULL;
}

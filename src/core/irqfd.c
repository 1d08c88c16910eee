/* KVM_IRQFD on the VM's service thread.
 *
 * Locks: irqfds.lock (outside vm->irq_lock) protects the lists.  The service thread's callback takes neither: removing a watch
 * waits for it. The list of a resampler is read inside rcu_read_lock() by acknowledgements.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include "base/evloop.h"
#include "base/log.h"
#include "base/rcu.h"
#include "core/eventfd.h"
#include "core/irqfd.h"
#include "core/route.h"
#include "core/vm_priv.h"

struct irqfd {
  struct irqfd *next;                          /* [lock] irqfds.list */
  struct vm *vm;                               /* (o) */
  u32 gsi;                                     /* (o) */
  struct client_eventfd event, resample_event; /* (o) */
  struct resampler *resampler;                 /* (o) NULL for edge-triggered ones */
  struct irqfd *resampler_next;                /* (r) [lock] */
};

/* All resampling irqfds of one GSI share a source: an acknowledgement lowers the line once and then tells all of them. */
struct resampler {
  struct irq_ack_notifier notifier;
  struct resampler *next; /* [lock] irqfds.resamplers */
  struct vm *vm;
  struct irqfd *members; /* (r) [lock] */
};

struct irqfds {
  pthread_mutex_t lock;
  struct irqfd *list;
  struct resampler *resamplers;
};

/* ---- events ---- */

static void on_event(void *arg, int fd, u32 epoll_events) {
  struct irqfd *i = arg;
  if (!client_eventfd_take(&i->event)) return;
  if (i->resampler) {
    vm_set_irq(i->vm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, i->gsi, 1, false);
  } else {
    vm_set_irq(i->vm, KVM_USERSPACE_IRQ_SOURCE_ID, i->gsi, 1, false);
    vm_set_irq(i->vm, KVM_USERSPACE_IRQ_SOURCE_ID, i->gsi, 0, false);
  }
}

static void on_ack(struct irq_ack_notifier *n) {
  struct resampler *s = container_of(n, struct resampler, notifier);
  vm_set_irq(s->vm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, n->gsi, 0, false);
  rcu_read_lock();
  for (struct irqfd *i = rcu_dereference(s->members); i; i = rcu_dereference(i->resampler_next))
    client_eventfd_signal(&i->resample_event);
  rcu_read_unlock();
}

/* ---- resamplers; lock held ---- */

static struct resampler *find_resampler(struct vm *vm, u32 gsi) {
  struct resampler *s = vm->irqfds->resamplers;
  while (s && s->notifier.gsi != gsi) s = s->next;
  if (s) return s;
  s = calloc(1, sizeof(*s));
  if (!s) return NULL;
  *s = (struct resampler){.notifier = {.gsi = gsi, .acked = on_ack}, .next = vm->irqfds->resamplers, .vm = vm};
  vm->irqfds->resamplers = s;
  vm_register_ack_notifier(vm, &s->notifier);
  return s;
}

static int resampler_join(struct irqfd *i) {
  struct resampler *s = find_resampler(i->vm, i->gsi);
  if (!s) return trace_error(-ENOMEM);
  i->resampler = s;
  i->resampler_next = s->members;
  rcu_assign_pointer(s->members, i);
  return 0;
}

static void resampler_leave(struct irqfd *i) {
  struct resampler *s = i->resampler;
  struct irqfd **p = &s->members;
  while (*p != i) p = &(*p)->resampler_next;
  rcu_assign_pointer(*p, i->resampler_next);
  synchronize_rcu();
  if (s->members) return;
  struct resampler **q = &i->vm->irqfds->resamplers;
  while (*q != s) q = &(*q)->next;
  *q = s->next;
  vm_unregister_ack_notifier(i->vm, &s->notifier);
  vm_set_irq(i->vm, KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, i->gsi, 0, false);
  free(s);
}

/* ---- assign and deassign ---- */

static void free_irqfd(struct irqfd *i) {
  client_eventfd_put(&i->event);
  client_eventfd_put(&i->resample_event);
  free(i);
}

/* lock held.  An event that is pending already is delivered: the watch reports a level. */
static int attach(struct irqfd *i, bool resample) {
  for (struct irqfd *o = i->vm->irqfds->list; o; o = o->next)
    if (o->event.id == i->event.id) return -EBUSY;
  int r = resample ? resampler_join(i) : 0;
  if (r) return r;
  r = evloop_add_fd(i->vm->evloop, i->event.fd, EPOLLIN, on_event, i);
  if (r) {
    if (resample) resampler_leave(i);
    return trace_error(r);
  }
  i->next = i->vm->irqfds->list;
  i->vm->irqfds->list = i;
  return 0;
}

/* lock held.  After return the GSI is not raised any more by this eventfd. */
static void detach(struct irqfd **p) {
  struct irqfd *i = *p;
  *p = i->next;
  evloop_del_fd(i->vm->evloop, i->event.fd);
  if (i->resampler) resampler_leave(i);
  free_irqfd(i);
}

static int assign(struct vm *vm, const struct kvm_irqfd *args) {
  bool resample = args->flags & KVM_IRQFD_FLAG_RESAMPLE;
  if (!vm->arch->irqfd_allowed(vm, resample)) return trace_error(-EINVAL);
  struct irqfd *i = calloc(1, sizeof(*i));
  if (!i) return trace_error(-ENOMEM);
  *i = (struct irqfd){.vm = vm, .gsi = args->gsi, .event.fd = -1, .resample_event.fd = -1};
  int r = client_eventfd_get((int)args->fd, &i->event);
  if (!r && resample) r = client_eventfd_get((int)args->resamplefd, &i->resample_event);
  if (!r) {
    pthread_mutex_lock(&vm->irqfds->lock);
    r = attach(i, resample);
    pthread_mutex_unlock(&vm->irqfds->lock);
  }
  if (r) free_irqfd(i);
  return r;
}

/* As in KVM, nothing to deassign is not an error. */
static int deassign(struct vm *vm, const struct kvm_irqfd *args) {
  u64 id;
  int r = client_eventfd_id((int)args->fd, &id);
  if (r) return r;
  pthread_mutex_lock(&vm->irqfds->lock);
  for (struct irqfd **p = &vm->irqfds->list; *p;) {
    if ((*p)->event.id == id && (*p)->gsi == args->gsi)
      detach(p);
    else
      p = &(*p)->next;
  }
  pthread_mutex_unlock(&vm->irqfds->lock);
  return 0;
}

int vm_irqfd(struct vm *vm, const struct kvm_irqfd *args) {
  if (args->flags & ~(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE)) return trace_error(-EINVAL);
  return args->flags & KVM_IRQFD_FLAG_DEASSIGN ? deassign(vm, args) : assign(vm, args);
}

/* ---- life cycle ---- */

int irqfds_create(struct vm *vm) {
  vm->irqfds = calloc(1, sizeof(*vm->irqfds));
  if (!vm->irqfds) return trace_error(-ENOMEM);
  pthread_mutex_init(&vm->irqfds->lock, NULL);
  return 0;
}

void irqfds_release(struct vm *vm) {
  pthread_mutex_lock(&vm->irqfds->lock);
  while (vm->irqfds->list) detach(&vm->irqfds->list);
  pthread_mutex_unlock(&vm->irqfds->lock);
}

void irqfds_destroy(struct vm *vm) {
  free(vm->irqfds);
  vm->irqfds = NULL;
}

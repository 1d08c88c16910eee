/* GSI routing: a table sorted by GSI, read lock-free, replaced as a whole; and the notifiers of acknowledged pins.
 *
 * Lock: irq_lock for changes.  Readers are inside rcu_read_lock().
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "base/rcu.h"
#include "core/route.h"
#include "core/vm_priv.h"

#define MAX_ROUTES 4096u
#define MAX_CHIPS  4u
#define MAX_PINS   256u
#define NO_GSI     (~0u)

struct irq_routing {
  unsigned n;
  u32 pin_gsi[MAX_CHIPS][MAX_PINS]; /* the GSI a chip's pin belongs to, or NO_GSI */
  struct irq_route_entry entry[];   /* by gsi */
};

/* The first entry of gsi; the others follow it. */
static unsigned first_of(const struct irq_routing *t, u32 gsi) {
  unsigned low = 0, high = t->n;
  while (low < high) {
    unsigned mid = (low + high) / 2;
    if (t->entry[mid].gsi < gsi)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

int vm_set_irq(struct vm *vm, int source, u32 gsi, int level, bool line_status) {
  int sum = -1;
  if (level) vm_irq_from_outside(vm);
  rcu_read_lock();
  struct irq_routing *t = rcu_dereference(vm->routing);
  for (unsigned i = first_of(t, gsi); i < t->n && t->entry[i].gsi == gsi; i++) {
    struct irq_route_entry *e = &t->entry[i];
    int r = e->set(e, vm, source, level, line_status);
    if (r >= 0) sum = r + MAX(sum, 0);
  }
  rcu_read_unlock();
  return sum;
}

void vm_for_each_route(struct vm *vm, void (*fn)(const struct irq_route_entry *e, void *arg), void *arg) {
  const struct irq_routing *t = rcu_dereference(vm->routing);
  for (unsigned i = 0; i < t->n; i++) fn(&t->entry[i], arg);
}

/* ---- change ---- */

static struct irq_routing *alloc_table(unsigned n) {
  struct irq_routing *t = calloc(1, sizeof(*t) + n * sizeof(t->entry[0]));
  if (t) memset(t->pin_gsi, 0xff, sizeof(t->pin_gsi));
  return t;
}

static int check_entry(const struct kvm_irq_routing_entry *ue) {
  if (ue->gsi >= MAX_ROUTES) return -EINVAL;
  u32 known = ue->type == KVM_IRQ_ROUTING_MSI ? KVM_MSI_VALID_DEVID : 0;
  return ue->flags & ~known ? -EINVAL : 0;
}

/* One GSI may go to several chips, once to each; anything else has the GSI alone. */
static bool conflicts(const struct irq_routing *t, unsigned at, const struct irq_route_entry *e) {
  for (; at && t->entry[at - 1].gsi == e->gsi; at--) {
    const struct irq_route_entry *o = &t->entry[at - 1];
    if (o->type != KVM_IRQ_ROUTING_IRQCHIP || e->type != KVM_IRQ_ROUTING_IRQCHIP || o->chip.irqchip == e->chip.irqchip)
      return true;
  }
  return false;
}

static int fill_entry(struct vm *vm, struct irq_route_entry *e, const struct kvm_irq_routing_entry *ue) {
  *e = (struct irq_route_entry){.gsi = ue->gsi, .type = ue->type};
  if (ue->type == KVM_IRQ_ROUTING_IRQCHIP) {
    e->chip.irqchip = ue->u.irqchip.irqchip;
    e->chip.pin = ue->u.irqchip.pin;
  } else if (ue->type == KVM_IRQ_ROUTING_MSI) {
    e->msi.address_lo = ue->u.msi.address_lo;
    e->msi.address_hi = ue->u.msi.address_hi;
    e->msi.data = ue->u.msi.data;
    e->msi.flags = ue->flags;
    e->msi.devid = ue->u.msi.devid;
  }
  int r = vm->arch->route_set(vm, e, ue);
  return r ? r : e->set ? 0 : -EINVAL;
}

static int add_entry(struct vm *vm, struct irq_routing *t, const struct kvm_irq_routing_entry *ue) {
  struct irq_route_entry e;
  int r = check_entry(ue);
  if (!r) r = fill_entry(vm, &e, ue);
  if (r) return r;
  if (e.type == KVM_IRQ_ROUTING_IRQCHIP) {
    if (e.chip.irqchip >= MAX_CHIPS || e.chip.pin >= MAX_PINS) return -EINVAL;
    t->pin_gsi[e.chip.irqchip][e.chip.pin] = e.gsi;
  }
  /* Tables come nearly sorted: look for the place from the end. */
  unsigned at = t->n;
  while (at && t->entry[at - 1].gsi > e.gsi) at--;
  if (conflicts(t, at, &e)) return -EINVAL;
  memmove(&t->entry[at + 1], &t->entry[at], (t->n - at) * sizeof(e));
  t->entry[at] = e;
  t->n++;
  return 0;
}

static void publish(struct vm *vm, struct irq_routing *t) {
  pthread_mutex_lock(&vm->irq_lock);
  struct irq_routing *old = vm->routing;
  rcu_assign_pointer(vm->routing, t);
  pthread_mutex_unlock(&vm->irq_lock);
  if (vm->arch->routes_changed) vm->arch->routes_changed(vm); /* reads the table that is published now, perhaps a newer one */
  synchronize_rcu();
  free(old);
}

int vm_set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned n, unsigned flags) {
  if (flags || n > MAX_ROUTES) return trace_error(-EINVAL);
  struct irq_routing *t = alloc_table(n);
  if (!t) return trace_error(-ENOMEM);
  int r = 0;
  for (unsigned i = 0; i < n && !r; i++) r = add_entry(vm, t, &entries[i]);
  if (r) {
    free(t);
    return trace_error(r);
  }
  publish(vm, t);
  return 0;
}

int vm_signal_msi(struct vm *vm, const struct kvm_msi *msi) {
  if (!vm->arch->irqchip_present(vm) || (msi->flags & ~KVM_MSI_VALID_DEVID)) return trace_error(-EINVAL);
  struct kvm_irq_routing_entry ue = {.type = KVM_IRQ_ROUTING_MSI, .flags = msi->flags};
  ue.u.msi.address_lo = msi->address_lo;
  ue.u.msi.address_hi = msi->address_hi;
  ue.u.msi.data = msi->data;
  ue.u.msi.devid = msi->devid;
  struct irq_route_entry e;
  int r = fill_entry(vm, &e, &ue);
  if (r) return trace_error(r);
  vm_irq_from_outside(vm);
  rcu_read_lock(); /* as set() expects */
  r = e.set(&e, vm, KVM_USERSPACE_IRQ_SOURCE_ID, 1, false);
  rcu_read_unlock();
  return r;
}

/* ---- acknowledgement ---- */

/* rcu_read_lock held. */
static u32 gsi_of_pin(struct vm *vm, unsigned chip, unsigned pin) {
  const struct irq_routing *t = rcu_dereference(vm->routing);
  return chip < MAX_CHIPS && pin < MAX_PINS ? t->pin_gsi[chip][pin] : NO_GSI;
}

void vm_notify_ack(struct vm *vm, unsigned chip, unsigned pin) {
  rcu_read_lock();
  u32 gsi = gsi_of_pin(vm, chip, pin);
  struct irq_ack_notifier *n = gsi == NO_GSI ? NULL : rcu_dereference(vm->priv->ack_notifiers);
  for (; n; n = rcu_dereference(n->next))
    if (n->gsi == gsi) n->acked(n);
  rcu_read_unlock();
}

bool vm_has_ack_notifier(struct vm *vm, unsigned chip, unsigned pin) {
  rcu_read_lock();
  u32 gsi = gsi_of_pin(vm, chip, pin);
  struct irq_ack_notifier *n = gsi == NO_GSI ? NULL : rcu_dereference(vm->priv->ack_notifiers);
  while (n && n->gsi != gsi) n = rcu_dereference(n->next);
  rcu_read_unlock();
  return n != NULL;
}

static void ack_list_changed(struct vm *vm) {
  /* Which pins need an EOI report depends on the notifiers too.  A VM that ends has no chips to tell. */
  if (vm->arch->routes_changed && atomic_load(&vm->refs)) vm->arch->routes_changed(vm);
}

void vm_register_ack_notifier(struct vm *vm, struct irq_ack_notifier *n) {
  pthread_mutex_lock(&vm->irq_lock);
  n->next = vm->priv->ack_notifiers;
  rcu_assign_pointer(vm->priv->ack_notifiers, n);
  pthread_mutex_unlock(&vm->irq_lock);
  ack_list_changed(vm);
}

void vm_unregister_ack_notifier(struct vm *vm, struct irq_ack_notifier *n) {
  pthread_mutex_lock(&vm->irq_lock);
  struct irq_ack_notifier **p = &vm->priv->ack_notifiers;
  while (*p && *p != n) p = &(*p)->next;
  bool found = *p != NULL;
  if (found) rcu_assign_pointer(*p, n->next); /* n->next stays: a reader may stand on n */
  pthread_mutex_unlock(&vm->irq_lock);
  synchronize_rcu();
  if (found) ack_list_changed(vm);
}

int routing_create(struct vm *vm) {
  vm->routing = alloc_table(0);
  return vm->routing ? 0 : trace_error(-ENOMEM);
}

void routing_destroy(struct vm *vm) {
  free(vm->routing);
  vm->routing = NULL;
}

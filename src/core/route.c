/* GSI routing: one table, replaced as a whole, read under RCU; ack notifiers. */
#include "core/route.h"
#include <errno.h>
#include <stdlib.h>
#include <urcu-bp.h>
#include "core/core_priv.h"

int routing_init_irqfds(struct vm *vm);

#define ROUTES_MAX 4096

struct irq_routing {
  unsigned n;
  struct irq_route_entry entry[];
};

static struct irq_routing *alloc(unsigned n) {
  struct irq_routing *r = calloc(1, sizeof(*r) + n * sizeof(r->entry[0]));
  if (r) r->n = n;
  return r;
}

int routing_init(struct vm *vm) {
  vm->routing = alloc(0);
  return vm->routing ? routing_init_irqfds(vm) : -ENOMEM;
}

void routing_destroy(struct vm *vm) {
  free(vm->routing);
  vm->routing = NULL;
}

int vm_set_irq(struct vm *vm, int source, u32 gsi, int level, bool line_status) {
  int sum = -1;
  rcu_read_lock();
  struct irq_routing *t = rcu_dereference(vm->routing);
  for (unsigned k = 0; k < t->n; k++) {
    struct irq_route_entry *e = &t->entry[k];
    if (e->gsi != gsi) continue;
    int r = e->set(e, vm, source, level, line_status);
    if (r >= 0) sum = (sum < 0 ? 0 : sum) + r;
  }
  rcu_read_unlock();
  return sum;
}

/* api.rst 4.52: a GSI stands for one pin of each chip, or for one message. */
static bool conflicts(const struct irq_routing *t, unsigned upto, const struct kvm_irq_routing_entry *ue) {
  for (unsigned k = 0; k < upto; k++) {
    const struct irq_route_entry *e = &t->entry[k];
    if (e->gsi != ue->gsi) continue;
    if (e->type != KVM_IRQ_ROUTING_IRQCHIP || ue->type != KVM_IRQ_ROUTING_IRQCHIP || e->chip.irqchip == ue->u.irqchip.irqchip) return true;
  }
  return false;
}

int vm_set_routing(struct vm *vm, const struct kvm_irq_routing_entry *entries, unsigned n, unsigned flags) {
  if (flags || n > ROUTES_MAX) return -EINVAL;
  struct irq_routing *t = alloc(n);
  if (!t) return -ENOMEM;
  int r = 0;
  for (unsigned k = 0; !r && k < n; k++) {
    const struct kvm_irq_routing_entry *ue = &entries[k];
    if (ue->gsi >= ROUTES_MAX || (ue->flags & ~(ue->type == KVM_IRQ_ROUTING_MSI ? KVM_MSI_VALID_DEVID : 0u)) || conflicts(t, k, ue)) r = -EINVAL;
    t->entry[k].gsi = ue->gsi;
    t->entry[k].type = ue->type;
    if (!r) r = vm->arch->route_set(vm, &t->entry[k], ue);
  }
  if (r) {
    free(t);
    return r;
  }
  pthread_mutex_lock(&vm->irq_lock);
  struct irq_routing *old = vm->routing;
  rcu_assign_pointer(vm->routing, t);
  pthread_mutex_unlock(&vm->irq_lock);
  synchronize_rcu();
  free(old);
  if (vm->arch->routes_changed) vm->arch->routes_changed(vm);
  return 0;
}

void vm_for_each_route(struct vm *vm, void (*fn)(const struct irq_route_entry *e, void *arg), void *arg) {
  const struct irq_routing *t = rcu_dereference(vm->routing);
  for (unsigned k = 0; k < t->n; k++) fn(&t->entry[k], arg);
}

/* Ack notifiers: few (PIT, resampling irqfds); one list for all VMs would do, one per VM hangs off vm->priv. */
struct notifiers {
  struct irq_ack_notifier *list;
};

static struct irq_ack_notifier **head(struct vm *vm) { return (struct irq_ack_notifier **)&vm->priv; }

static bool chip_gsi(struct vm *vm, unsigned chip, unsigned pin, u32 gsi) {
  const struct irq_routing *t = rcu_dereference(vm->routing);
  for (unsigned k = 0; k < t->n; k++) {
    const struct irq_route_entry *e = &t->entry[k];
    if (e->type == KVM_IRQ_ROUTING_IRQCHIP && e->chip.irqchip == chip && e->chip.pin == pin && e->gsi == gsi) return true;
  }
  return false;
}

bool vm_has_ack_notifier(struct vm *vm, unsigned chip, unsigned pin) {
  bool found = false;
  rcu_read_lock();
  for (struct irq_ack_notifier *n = rcu_dereference(*head(vm)); !found && n; n = rcu_dereference(n->next)) found = chip_gsi(vm, chip, pin, n->gsi);
  rcu_read_unlock();
  return found;
}

void vm_notify_ack(struct vm *vm, unsigned chip, unsigned pin) {
  rcu_read_lock();
  for (struct irq_ack_notifier *n = rcu_dereference(*head(vm)); n; n = rcu_dereference(n->next))
    if (chip_gsi(vm, chip, pin, n->gsi)) n->acked(n);
  rcu_read_unlock();
}

void vm_register_ack_notifier(struct vm *vm, struct irq_ack_notifier *n) {
  pthread_mutex_lock(&vm->irq_lock);
  n->next = *head(vm);
  rcu_assign_pointer(*head(vm), n);
  pthread_mutex_unlock(&vm->irq_lock);
}

void vm_unregister_ack_notifier(struct vm *vm, struct irq_ack_notifier *n) {
  pthread_mutex_lock(&vm->irq_lock);
  for (struct irq_ack_notifier **at = head(vm); *at; at = &(*at)->next)
    if (*at == n) {
      rcu_assign_pointer(*at, n->next);
      break;
    }
  pthread_mutex_unlock(&vm->irq_lock);
  synchronize_rcu();
}

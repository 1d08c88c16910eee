/* Interrupt messages: which local APICs a destination names, and their delivery to them from any thread.
 *
 * SDM Vol. 3A (325384) 10.6 "Issuing interprocessor interrupts", 10.12.10 "Determining IPI destination in x2APIC mode".
 *
 * Delivery takes no lock: the table of APIC IDs is made of atomic pointers that are changed in place, and a target's mode and
 * logical ID are one atomic word (ident).  A change of them that runs beside a delivery is seen by it or not, as on a bus.
 */
#include <errno.h>
#include "x86/irqchip/lapic.h"

/* ---- accepting ---- */

/* Vectors 0-15 are illegal (SDM Vol. 3A 10.5.2). */
static int accept_fixed(struct x86_lapic *l, unsigned vector, bool assert, bool level) {
  if (level && !assert) return 0;
  if ((~lapic_ident(l) & (IDENT_HW | IDENT_SW))) return 0;
  if (vector < 16) {
    lapic_error(l, ESR_RECEIVE_VECTOR);
    return 0;
  }
  u64 bit = 1ull << (vector & 63);
  _Atomic u64 *tmr = &l->tmr[vector >> 6];
  if (!!(atomic_load_explicit(tmr, memory_order_relaxed) & bit) != level) {
    if (level)
      atomic_fetch_or_explicit(tmr, bit, memory_order_relaxed);
    else
      atomic_fetch_and_explicit(tmr, ~bit, memory_order_relaxed);
  }
  /* Release: who sees the vector sees its trigger mode. */
  atomic_fetch_or_explicit(&l->pir[vector >> 6], bit, memory_order_release);
  lapic_posted(l);
  return 1;
}

static int accept_lowest(struct x86_lapic *l, unsigned vector, bool assert, bool level) {
  atomic_fetch_add_explicit(&l->arb_prio, 1, memory_order_relaxed);
  return accept_fixed(l, vector, assert, level);
}

static int accept_smi(struct x86_lapic *l, unsigned vector, bool assert, bool level) {
  atomic_store_explicit(&l->c->smi_pending, true, memory_order_release);
  x86_request_event(l->c);
  return 1;
}

/* One NMI may be in service and one more latched. */
static int accept_nmi(struct x86_lapic *l, unsigned vector, bool assert, bool level) {
  unsigned n = atomic_load_explicit(&l->c->nmi_pending, memory_order_relaxed);
  while (n < 2 &&
         !atomic_compare_exchange_weak_explicit(&l->c->nmi_pending, &n, n + 1, memory_order_release, memory_order_relaxed))
    ;
  x86_request_event(l->c);
  return 1;
}

/* The level de-assert message only synchronizes arbitration IDs of old processors (SDM Vol. 3A 10.6.1).  An INIT forgets a SIPI.
 */
static int accept_init(struct x86_lapic *l, unsigned vector, bool assert, bool level) {
  if (level && !assert) return 0;
  atomic_store_explicit(&l->c->apic_events, 1, memory_order_release);
  x86_request_event(l->c);
  return 1;
}

static int accept_startup(struct x86_lapic *l, unsigned vector, bool assert, bool level) {
  u64 old = atomic_load_explicit(&l->c->apic_events, memory_order_relaxed), sipi = 2 | (u64)vector << 8;
  while (!atomic_compare_exchange_weak_explicit(&l->c->apic_events, &old, (old & 1) | sipi, memory_order_release,
                                                memory_order_relaxed))
    ;
  x86_request_event(l->c);
  return 1;
}

/* ExtINT has no vector before the PIC is asked; the PIC's output is looked at by itself.  Remote read is not supported. */
static int accept_nothing(struct x86_lapic *l, unsigned vector, bool assert, bool level) {
  return 0;
}

int lapic_accept(struct x86_lapic *l, unsigned mode, unsigned vector, bool assert, bool level) {
  static int (*const accept[8])(struct x86_lapic *, unsigned, bool, bool) = {
      [APIC_FIXED] = accept_fixed,         [APIC_LOWEST] = accept_lowest, [APIC_SMI] = accept_smi,
      [APIC_REMOTE_READ] = accept_nothing, [APIC_NMI] = accept_nmi,       [APIC_INIT] = accept_init,
      [APIC_STARTUP] = accept_startup,     [APIC_EXTINT] = accept_nothing};
  return accept[mode & 7](l, vector, assert, level);
}

static int accept_msg(struct x86_lapic *l, const struct apic_msg *m) {
  return lapic_accept(l, m->mode, m->vector, m->assert, m->level);
}

/* ---- addressing ---- */

static bool broadcast_quirk(const struct x86_vm *vm) {
  return !(vm->x2apic_format & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
}

/* A CPU in xAPIC mode whose ID needs more than 8 bits answers to its x2APIC ID, so that it can be named at all (as KVM). */
static bool match_physical(const struct x86_lapic *l, u32 ident, u32 dest) {
  return dest == ((ident & IDENT_X2) || dest > 0xff ? l->c->core.id : IDENT_XID(ident));
}

static bool match_logical(const struct x86_lapic *l, u32 ident, u32 dest) {
  if (ident & IDENT_X2) {
    u32 ldr = x2apic_ldr(l->c->core.id);
    return ldr >> 16 == dest >> 16 && (ldr & dest & 0xffff);
  }
  u32 lid = IDENT_LID(ident);
  if (ident & IDENT_FLAT) return lid & dest;
  return (ident & IDENT_CLUSTER) && lid >> 4 == dest >> 4 && (lid & dest & 0xf);
}

/* Destination 0xff of an MSI means all CPUs in x2APIC mode too, as there is no interrupt remapping, unless the client asked for
 * the exact meaning (KVM_CAP_X2APIC_API, Documentation/virt/kvm/api.rst 7.7). */
static bool match(struct x86_lapic *l, struct x86_lapic *src, u32 ident, u32 dest, bool logical) {
  bool x2 = ident & IDENT_X2;
  if (x2 && !src && dest == APIC_BROADCAST && broadcast_quirk(l->chip->vm)) return true;
  if (dest == (x2 ? X2APIC_BROADCAST : APIC_BROADCAST)) return true;
  return logical ? match_logical(l, ident, dest) : match_physical(l, ident, dest);
}

bool lapic_matches(struct x86_lapic *l, u32 dest, bool logical) {
  u32 ident = lapic_ident(l);
  return (ident & IDENT_HW) && match(l, NULL, ident, dest, logical);
}

static bool named(struct x86_lapic *l, struct x86_lapic *src, u32 ident, const struct apic_msg *m) {
  switch (m->shorthand) {
  case APIC_TO_ALL:
    return true;
  case APIC_TO_OTHERS:
    return l != src;
  default:
    return match(l, src, ident, m->dest, m->logical);
  }
}

static bool is_broadcast(struct x86_irqchip *chip, struct x86_lapic *src, const struct apic_msg *m, u32 modes) {
  if (broadcast_quirk(chip->vm)) return m->dest == (src && (lapic_ident(src) & IDENT_X2) ? X2APIC_BROADCAST : APIC_BROADCAST);
  return m->dest == X2APIC_BROADCAST || (m->dest == APIC_BROADCAST && modes != IDENT_X2);
}

static bool lowest_priority(const struct apic_msg *m) {
  return m->mode == APIC_LOWEST || m->redirect_hint;
}

/* The candidate with fewer lowest-priority interrupts so far; software-disabled APICs do not arbitrate. */
static void arbitrate(struct x86_lapic **best, struct x86_lapic *l, u32 ident) {
  if (!(ident & IDENT_SW)) return;
  if (!*best ||
      atomic_load_explicit(&l->arb_prio, memory_order_relaxed) < atomic_load_explicit(&(*best)->arb_prio, memory_order_relaxed))
    *best = l;
}

static struct x86_lapic *lapic_at(struct x86_irqchip *chip, unsigned n) {
  return atomic_load_explicit(&chip->lapics[n], memory_order_acquire);
}

static struct x86_lapic *lapic_by_id(struct x86_irqchip *chip, u32 id) {
  return id < APIC_MAX_ID ? atomic_load_explicit(&chip->phys[id], memory_order_acquire) : NULL;
}

/* Asks every APIC.  need: ident bits a target must have; none: what to answer when nobody was named. */
static int deliver_scan(struct x86_irqchip *chip, struct x86_lapic *src, const struct apic_msg *m, u32 need, int none) {
  unsigned n = atomic_load_explicit(&chip->n_lapics, memory_order_acquire);
  struct x86_lapic *best = NULL;
  bool lowest = lowest_priority(m);
  int r = none;
  for (unsigned k = 0; k < n; k++) {
    struct x86_lapic *l = lapic_at(chip, k);
    u32 ident = l ? lapic_ident(l) : 0;
    if ((ident & need) != need || !named(l, src, ident, m)) continue;
    if (lowest)
      arbitrate(&best, l, ident);
    else
      r = MAX(r, 0) + accept_msg(l, m);
  }
  return best ? accept_msg(best, m) : r;
}

/* Logical x2APIC: 16 consecutive IDs (SDM Vol. 3A 10.12.10.2). */
static int deliver_x2_cluster(struct x86_irqchip *chip, const struct apic_msg *m) {
  struct x86_lapic *best = NULL;
  int r = 0;
  for (u32 mask = m->dest & 0xffff; mask; mask &= mask - 1) {
    struct x86_lapic *l = lapic_by_id(chip, (m->dest >> 16) * 16 + (u32)__builtin_ctz(mask));
    if (!l) continue;
    if (lowest_priority(m))
      arbitrate(&best, l, lapic_ident(l));
    else
      r += accept_msg(l, m);
  }
  return best ? accept_msg(best, m) : r;
}

int x86_apic_deliver(struct x86_vm *vm, struct x86_lapic *src, const struct apic_msg *m) {
  struct x86_irqchip *chip = vm->irqchip;
  if (m->shorthand == APIC_TO_SELF) return src ? accept_msg(src, m) : 0;
  u32 modes = atomic_load_explicit(&chip->modes, memory_order_acquire);
  if (m->shorthand == APIC_TO_DEST && !is_broadcast(chip, src, m, modes)) {
    if (!m->logical) {
      struct x86_lapic *l = lapic_by_id(chip, m->dest);
      return l ? accept_msg(l, m) : 0;
    }
    if (modes == IDENT_X2) return deliver_x2_cluster(chip, m);
    if (modes == IDENT_FLAT || modes == IDENT_CLUSTER) return deliver_scan(chip, src, m, IDENT_HW | IDENT_SW, 0);
  }
  if (!m->logical && m->dest == APIC_BROADCAST && lowest_priority(m)) { /* nothing to arbitrate: all take it */
    struct apic_msg all = *m;
    all.mode = APIC_FIXED;
    all.redirect_hint = false;
    return deliver_scan(chip, src, &all, IDENT_HW, -1);
  }
  return deliver_scan(chip, src, m, IDENT_HW, -1);
}

void lapic_send_icr(struct x86_lapic *l, u32 icr, u32 dest) {
  struct apic_msg m = {.dest = dest,
                       .vector = (u8)icr,
                       .mode = (icr >> 8) & 7,
                       .logical = icr & ICR_LOGICAL,
                       .assert = icr & ICR_ASSERT,
                       .level = icr & ICR_LEVEL,
                       .shorthand = (icr >> 18) & 3};
  if (m.vector < 16 && m.mode <= APIC_LOWEST) {
    lapic_error(l, ESR_SEND_VECTOR);
    return;
  }
  x86_apic_deliver(l->chip->vm, l, &m);
}

/* ---- the hypercall: Documentation/virt/kvm/x86/hypercalls.rst, KVM_HC_SEND_IPI ---- */

static long pv_send(struct x86_irqchip *chip, u64 bitmap, u64 first, const struct apic_msg *m) {
  long count = 0;
  for (; bitmap; bitmap &= bitmap - 1) {
    u64 id = first + (unsigned)__builtin_ctzll(bitmap);
    struct x86_lapic *l = id < APIC_MAX_ID ? lapic_by_id(chip, (u32)id) : NULL;
    if (l) count += accept_msg(l, m);
  }
  return count;
}

long x86_lapic_pv_ipi(struct x86_vm *vm, u64 low, u64 high, u32 min, u32 icr, bool mode64) {
  if (icr & (ICR_LOGICAL | 3u << 18)) return -EINVAL;
  if (!vm->irqchip) return -EOPNOTSUPP;
  struct apic_msg m = {.vector = (u8)icr, .mode = (icr >> 8) & 7, .assert = icr & ICR_ASSERT, .level = icr & ICR_LEVEL};
  return pv_send(vm->irqchip, low, min, &m) + pv_send(vm->irqchip, high, (u64)min + (mode64 ? 64 : 32), &m);
}

/* ---- LINT0 ---- */

void x86_apic_lint0_nmi(struct x86_irqchip *chip) {
  unsigned n = atomic_load_explicit(&chip->n_lapics, memory_order_acquire);
  for (unsigned k = 0; k < n; k++) {
    struct x86_lapic *l = lapic_at(chip, k);
    if (l && (lapic_ident(l) & (IDENT_NMI | IDENT_HW)) == (IDENT_NMI | IDENT_HW)) lapic_accept(l, APIC_NMI, 0, true, false);
  }
}

void x86_apic_extint(struct x86_irqchip *chip) {
  unsigned n = atomic_load_explicit(&chip->n_lapics, memory_order_acquire);
  for (unsigned k = 0; k < n; k++) {
    struct x86_lapic *l = lapic_at(chip, k);
    if (!l || !(lapic_ident(l) & IDENT_PIC)) continue;
    x86_request_event(l->c);
    return;
  }
}

/* ---- the table of IDs ---- */

/* Who answers to which ID.  x2APIC IDs win over xAPIC IDs, which the guest may have made ambiguous: the first CPU keeps those. */
static void map_enter(struct x86_irqchip *chip, struct x86_lapic *l, u32 ident) {
  u32 id = l->c->core.id;
  if ((ident & IDENT_X2) || id > 0xff) chip->scratch[id] = l;
  if (!(ident & IDENT_X2) && !chip->scratch[IDENT_XID(ident)]) chip->scratch[IDENT_XID(ident)] = l;
}

static u32 mode_of(u32 ident) {
  if (!(ident & IDENT_SW)) return 0;
  if (ident & IDENT_X2) return IDENT_X2;
  return IDENT_LID(ident) ? ident & (IDENT_FLAT | IDENT_CLUSTER) : 0;
}

void lapic_map_rebuild(struct x86_irqchip *chip) {
  pthread_mutex_lock(&chip->map_lock);
  unsigned n = atomic_load(&chip->n_lapics);
  u32 modes = 0;
  for (unsigned k = 0; k < APIC_MAX_ID; k++) chip->scratch[k] = NULL;
  for (unsigned k = 0; k < n; k++) {
    struct x86_lapic *l = lapic_at(chip, k);
    u32 ident = l ? lapic_ident(l) : 0;
    if (!(ident & IDENT_HW)) continue;
    map_enter(chip, l, ident);
    modes |= mode_of(ident);
  }
  for (unsigned k = 0; k < APIC_MAX_ID; k++)
    if (atomic_load_explicit(&chip->phys[k], memory_order_relaxed) != chip->scratch[k])
      atomic_store_explicit(&chip->phys[k], chip->scratch[k], memory_order_release);
  atomic_store_explicit(&chip->modes, modes, memory_order_release);
  atomic_fetch_add_explicit(&chip->route_gen, 1, memory_order_release);
  pthread_mutex_unlock(&chip->map_lock);
}

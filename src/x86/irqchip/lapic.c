/* The local APIC: registers, priorities, acknowledge and end of interrupt, IA32_APIC_BASE.
 *
 * SDM Vol. 3A (325384) chapter 10 "Advanced programmable interrupt controller (APIC)".  Where KVM's virtual APIC differs from it
 * in what clients see, KVM decides.
 *
 * Everything here runs with vcpu->mutex held (the owner) except lapic_error().  No lock is taken on the paths of TPR, EOI of
 * interrupts that are no I/O APIC pin's, ICR and acknowledge; lock order as chips.h says.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/rcu.h"
#include "core/memslot.h"
#include "x86/irqchip/lapic.h"

#define MSR_MCG_CAP             0x179
#define MCG_CMCI_P              BIT(10)
#define VERSION_BASE            0x14u
#define VERSION_EOI_SUPPRESSION BIT(24)

/* ---- publishing ---- */

static u32 make_ident(struct x86_lapic *l) {
  u32 id = 0, lint0 = l->regs[REG_LVT_LINT0];
  bool hw = lapic_hw(l), x2 = lapic_x2(l), masked = lint0 & LVT_MASKED;
  unsigned mode = (lint0 & LVT_MODE) >> 8;
  if (hw) id |= IDENT_HW;
  if (x2) id |= IDENT_X2;
  if (lapic_sw(l)) id |= IDENT_SW;
  if (l->regs[REG_DFR] == 0xffffffffu) id |= IDENT_FLAT;
  if (l->regs[REG_DFR] == 0x0fffffffu) id |= IDENT_CLUSTER;
  if (!hw || (!masked && mode == APIC_EXTINT)) id |= IDENT_PIC;
  if (!masked && mode == APIC_NMI) id |= IDENT_NMI;
  if (!x2) id |= (l->regs[REG_ID] >> 24) << 8 | (l->regs[REG_LDR] >> 24) << 16;
  return id;
}

void lapic_publish(struct x86_lapic *l) {
  u32 now = make_ident(l), old = atomic_exchange_explicit(&l->ident, now, memory_order_acq_rel);
  if ((old ^ now) & ~(u32)(IDENT_PIC | IDENT_NMI)) lapic_map_rebuild(l->chip);
  if ((now & IDENT_PIC) && !(old & IDENT_PIC)) x86_request_event(l->c);
}

/* ---- requests and priorities ---- */

static void fold(struct x86_lapic *l) {
  for (int k = 0; k < 4; k++)
    if (atomic_load_explicit(&l->pir[k], memory_order_relaxed))
      l->irr[k] |= atomic_exchange_explicit(&l->pir[k], 0, memory_order_acquire);
}

void lapic_clear_vectors(struct x86_lapic *l) {
  for (int k = 0; k < 4; k++) {
    atomic_store_explicit(&l->pir[k], 0, memory_order_relaxed);
    atomic_store_explicit(&l->tmr[k], 0, memory_order_relaxed);
    l->irr[k] = l->isr[k] = 0;
  }
}

static bool tmr_test(struct x86_lapic *l, unsigned v) {
  return atomic_load_explicit(&l->tmr[v >> 6], memory_order_relaxed) >> (v & 63) & 1;
}

/* SDM Vol. 3A 10.8.3.1 */
u32 lapic_ppr(struct x86_lapic *l) {
  int top = vec_top(l->isr);
  u32 tpr = l->regs[REG_TPR] & 0xff, isr = top < 0 ? 0 : (u32)top & 0xf0;
  return (tpr & 0xf0) >= isr ? tpr : isr;
}

/* The vector that may be taken next, -1 for none. */
static int deliverable(struct x86_lapic *l) {
  int top = vec_top(l->irr);
  if (top < 0 || !lapic_hw(l) || (u32)(top & 0xf0) <= (lapic_ppr(l) & 0xf0)) return -1;
  return top;
}

/* After PPR may have become lower. */
static void priority_lowered(struct x86_lapic *l) {
  fold(l);
  if (deliverable(l) >= 0) x86_request_event(l->c);
}

/* ---- end of interrupt ---- */

struct scan {
  struct x86_lapic *l;
  unsigned pins, ending;
};

/* A route of the client's I/O APIC: a level-triggered message to this CPU, or one that this CPU has yet to end. */
static void scan_route(const struct irq_route_entry *e, void *arg) {
  const struct scan *s = arg;
  struct x86_lapic *l = s->l;
  if (e->type != KVM_IRQ_ROUTING_MSI || e->gsi >= s->pins || !(e->msi.data & 0x8000)) return;
  struct apic_msg m = x86_msi_decode(l->chip->vm, (u64)e->msi.address_hi << 32 | e->msi.address_lo, e->msi.data);
  if (m.vector == s->ending || lapic_matches(l, m.dest, m.logical) || vec_test(l->isr, m.vector) || vec_test(l->irr, m.vector))
    vec_set(l->eoi_exit, m.vector);
}

static bool eoi_is_clients(struct x86_lapic *l, unsigned vector) {
  u32 gen = atomic_load_explicit(&l->chip->route_gen, memory_order_acquire);
  if (gen != l->eoi_exit_gen) {
    l->eoi_exit_gen = gen;
    memset(l->eoi_exit, 0, sizeof(l->eoi_exit));
    rcu_read_lock();
    vm_for_each_route(&l->chip->vm->core, scan_route, &(struct scan){.l = l, .pins = l->chip->split_pins, .ending = vector});
    rcu_read_unlock();
  }
  return vec_test(l->eoi_exit, vector);
}

static void broadcast_eoi(struct x86_lapic *l, unsigned vector) {
  struct x86_irqchip *chip = l->chip;
  if (chip->split) {
    if (!eoi_is_clients(l, vector)) return;
    vec_set(l->eoi_pending, vector);
    vcpu_request(&l->c->core, REQ_EOI_EXIT);
  } else if (x86_ioapic_uses(chip->ioapic, vector)) {
    x86_ioapic_eoi(chip->ioapic, vector, tmr_test(l, vector), l->regs[REG_SVR] & SVR_DIRECTED);
  }
}

static void end_of_interrupt(struct x86_lapic *l) {
  int top = vec_top(l->isr);
  if (top < 0) return;
  vec_clear(l->isr, (unsigned)top);
  broadcast_eoi(l, (unsigned)top);
  priority_lowered(l);
}

bool x86_lapic_eoi_exit(struct x86_vcpu *c) {
  struct x86_lapic *l = c->lapic;
  int v = l ? vec_top(l->eoi_pending) : -1;
  if (v < 0) return false;
  vec_clear(l->eoi_pending, (unsigned)v);
  c->core.run->exit_reason = KVM_EXIT_IOAPIC_EOI;
  c->core.run->eoi.vector = (u8)v;
  if (vec_top(l->eoi_pending) >= 0) vcpu_request(&c->core, REQ_EOI_EXIT);
  return true;
}

/* ---- PV EOI (Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN): bit 0 of a byte of guest memory says that the guest may
 * end the interrupt by clearing it ---- */

static void pv_eoi_write(struct x86_lapic *l, u8 bit) {
  if (vcpu_write_gpa(&l->c->core, l->pv_eoi & ~3ull, &bit, 1)) l->pv_eoi = 0;
}

static bool pv_eoi_done(struct x86_lapic *l) {
  u8 byte;
  return !vm_read_gpa(l->c->core.vm, l->pv_eoi & ~3ull, &byte, 1) && !(byte & 1);
}

/* Nothing else waits, and nobody but this APIC needs to hear of it: the guest may skip the EOI. */
static void pv_eoi_offer(struct x86_lapic *l, unsigned vector) {
  if (!(l->pv_eoi & 1) || vec_top(l->irr) >= 0) return;
  if (l->chip->split ? eoi_is_clients(l, vector) : x86_ioapic_uses(l->chip->ioapic, vector)) return;
  pv_eoi_write(l, 1);
  l->pv_eoi_pending = l->pv_eoi & 1;
}

static void pv_eoi_withdraw(struct x86_lapic *l) {
  l->pv_eoi_pending = false;
  pv_eoi_write(l, 0);
}

/* Has the guest ended the interrupt?  If it has not and something else waits now, it must say so the slow way. */
static void pv_eoi_check(struct x86_lapic *l) {
  if (pv_eoi_done(l)) {
    l->pv_eoi_pending = false;
    end_of_interrupt(l);
  } else if (vec_top(l->irr) >= 0) {
    pv_eoi_withdraw(l);
  }
}

static void pv_eoi_settle(struct x86_lapic *l) {
  if (l->pv_eoi_pending) pv_eoi_check(l);
  if (l->pv_eoi_pending) pv_eoi_withdraw(l);
}

void x86_lapic_leave(struct x86_vcpu *c) {
  if (c->lapic) pv_eoi_settle(c->lapic);
}

int x86_lapic_pv_eoi_set(struct x86_vcpu *c, u64 value) {
  struct x86_lapic *l = c->lapic;
  u8 byte;
  if (!l || (value & 2) || ((value & 1) && vm_read_gpa(c->core.vm, value & ~3ull, &byte, 1))) return -1;
  pv_eoi_settle(l);
  l->pv_eoi = value;
  return 0;
}

/* ---- interrupts for the processor ---- */

static void error_interrupt(struct x86_lapic *l) {
  if (atomic_exchange_explicit(&l->error_raised, false, memory_order_acquire)) lapic_lvt_deliver(l, REG_LVT_ERROR);
}

/* The mark goes first: what is posted from here on sets it again.  The timer's and the error interrupt are posted here
 * themselves. */
static void take_posted(struct x86_lapic *l) {
  atomic_exchange_explicit(&l->posted, false, memory_order_acq_rel);
  lapic_timer_expire(l);
  error_interrupt(l);
  fold(l);
}

void x86_lapic_sync(struct x86_vcpu *c) {
  struct x86_lapic *l = c->lapic;
  if (!l) return;
  if (atomic_load_explicit(&l->posted, memory_order_relaxed)) take_posted(l);
  if (unlikely(l->pv_eoi_pending)) pv_eoi_check(l);
  if (unlikely(l->vapic)) lapic_vapic_read(l);
}

static bool extint_pending(struct x86_lapic *l) {
  if (!(atomic_load_explicit(&l->ident, memory_order_relaxed) & IDENT_PIC)) return false;
  return l->chip->split ? l->external_vector >= 0 : x86_pic_output(l->chip->pic);
}

static int extint_ack(struct x86_lapic *l) {
  if (!l->chip->split) return x86_pic_ack(l->chip->pic);
  int v = l->external_vector;
  l->external_vector = -1;
  return v;
}

int x86_lapic_external(struct x86_vcpu *c, u8 vector) {
  struct x86_lapic *l = c->lapic;
  if (!l || !l->chip->split) return -ENXIO;
  if (l->external_vector >= 0) return -EEXIST;
  l->external_vector = vector;
  x86_request_event(c);
  return 0;
}

bool x86_irq_pending(struct x86_vcpu *c) {
  struct x86_lapic *l = c->lapic;
  if (!l) return false;
  x86_lapic_sync(c);
  if (unlikely(l->vapic)) lapic_vapic_write(l);
  return extint_pending(l) || deliverable(l) >= 0;
}

bool x86_irq_unannounced(const struct x86_vcpu *c) {
  return !c->lapic || c->lapic->vapic;
}

int x86_irq_ack(struct x86_vcpu *c) {
  struct x86_lapic *l = c->lapic;
  if (!l) return -1;
  x86_lapic_sync(c);
  if (extint_pending(l)) return extint_ack(l);
  int v = deliverable(l);
  if (v < 0) return -1;
  if (l->pv_eoi_pending) pv_eoi_withdraw(l);
  vec_clear(l->irr, (unsigned)v);
  vec_set(l->isr, (unsigned)v);
  pv_eoi_offer(l, (unsigned)v);
  if (unlikely(l->vapic)) lapic_vapic_write(l);
  return v;
}

int lapic_lvt_deliver(struct x86_lapic *l, enum apic_reg lvt) {
  u32 v = l->regs[lvt];
  if (!lapic_hw(l) || (v & LVT_MASKED)) return 0;
  int r = lapic_accept(l, (v & LVT_MODE) >> 8, v & LVT_VECTOR, true, v & LVT_LEVEL);
  /* Intel masks the performance-monitoring entry on delivery (SDM Vol. 3B 20.2.4). */
  if (r && lvt == REG_LVT_PMC && !x86_is_amd(l->c)) l->regs[lvt] |= LVT_MASKED;
  return r;
}

void x86_lapic_local(struct x86_vcpu *c, unsigned lvt_offset) {
  if (c->lapic && lvt_offset < APIC_REGS << 4) lapic_lvt_deliver(c->lapic, (enum apic_reg)(lvt_offset >> 4));
}

/* Any thread. */
void lapic_error(struct x86_lapic *l, u32 esr_bit) {
  u32 old = atomic_fetch_or_explicit(&l->errors, esr_bit, memory_order_relaxed);
  if (old & esr_bit) return;
  atomic_store_explicit(&l->error_raised, true, memory_order_release);
  lapic_posted(l);
}

/* ---- registers ---- */

/* The processor had CMCI, and its LVT entry, from the start: MCG_CAP is set up before the guest runs. */
static bool has_cmci(struct x86_lapic *l) {
  u64 cap;
  return !x86_msr_get_host(l->c, MSR_MCG_CAP, &cap) && (cap & MCG_CMCI_P);
}

unsigned lapic_lvt_count(struct x86_lapic *l) {
  return has_cmci(l) ? 7 : 6;
}

/* Suppressing EOI broadcasts is offered only where the I/O APIC has an EOI register of its own, which ours has not. */
u32 lapic_version(struct x86_lapic *l) {
  u32 v = VERSION_BASE | (lapic_lvt_count(l) - 1) << 16;
  if (l->chip->split && x86_has(l->c, X86_FEATURE_X2APIC)) v |= VERSION_EOI_SUPPRESSION;
  return v;
}

static u32 read_plain(struct x86_lapic *l, unsigned reg) {
  return l->regs[reg];
}
static u32 read_version(struct x86_lapic *l, unsigned reg) {
  return lapic_version(l);
}
static u32 read_zero(struct x86_lapic *l, unsigned reg) {
  return 0;
}
static u32 read_ppr(struct x86_lapic *l, unsigned reg) {
  return lapic_ppr(l);
}
static u32 read_current(struct x86_lapic *l, unsigned reg) {
  return lapic_timer_current(l);
}
static u32 vec_word(const u64 *map, unsigned word) {
  return (u32)(map[word >> 1] >> (word & 1) * 32);
}
static u32 read_isr(struct x86_lapic *l, unsigned reg) {
  return vec_word(l->isr, reg - REG_ISR);
}
static u32 read_irr(struct x86_lapic *l, unsigned reg) {
  return vec_word(l->irr, reg - REG_IRR);
}
static u32 read_tmr(struct x86_lapic *l, unsigned reg) {
  u64 half = atomic_load_explicit(&l->tmr[(reg - REG_TMR) >> 1], memory_order_relaxed);
  return (u32)(half >> (reg & 1) * 32);
}

static void write_id(struct x86_lapic *l, unsigned reg, u32 v) {
  l->regs[REG_ID] = v & 0xff000000;
  lapic_publish(l);
}

static void write_ldr(struct x86_lapic *l, unsigned reg, u32 v) {
  l->regs[REG_LDR] = v & 0xff000000;
  lapic_publish(l);
}

static void write_dfr(struct x86_lapic *l, unsigned reg, u32 v) {
  l->regs[REG_DFR] = v | 0x0fffffff;
  lapic_publish(l);
}

static void write_tpr(struct x86_lapic *l, unsigned reg, u32 v) {
  u32 old = l->regs[REG_TPR];
  l->regs[REG_TPR] = v & 0xff;
  if (unlikely(l->vapic)) lapic_vapic_write(l);
  if (l->regs[REG_TPR] < old) priority_lowered(l);
}

static void write_eoi(struct x86_lapic *l, unsigned reg, u32 v) {
  end_of_interrupt(l);
}

static void mask_all_lvts(struct x86_lapic *l) {
  for (unsigned reg = REG_LVT_TIMER; reg <= REG_LVT_ERROR; reg++) l->regs[reg] |= LVT_MASKED;
  l->regs[REG_LVT_CMCI] |= LVT_MASKED;
}

/* Software disable masks all LVT entries (SDM Vol. 3A 10.4.7.2); requests and interrupts in service stay. */
static void write_svr(struct x86_lapic *l, unsigned reg, u32 v) {
  u32 mask = 0x3ff;
  if (lapic_version(l) & VERSION_EOI_SUPPRESSION) mask |= SVR_DIRECTED;
  l->regs[REG_SVR] = v & mask;
  if (!(v & SVR_ENABLE)) {
    mask_all_lvts(l);
    lapic_timer_lvt_changed(l);
    lapic_timer_expire(l); /* to nobody */
  }
  lapic_publish(l);
}

/* A write shows the errors since the last write (SDM Vol. 3A 10.5.3). */
static void write_esr(struct x86_lapic *l, unsigned reg, u32 v) {
  l->regs[REG_ESR] = atomic_exchange_explicit(&l->errors, 0, memory_order_relaxed);
}

/* There is no delay: delivery status always reads idle.  Reserved bits read back as written, as KVM. */
static void write_icr(struct x86_lapic *l, unsigned reg, u32 v) {
  l->regs[REG_ICR] = v & ~ICR_BUSY;
  lapic_send_icr(l, l->regs[REG_ICR], l->regs[REG_ICR2] >> 24);
}

static void write_icr2(struct x86_lapic *l, unsigned reg, u32 v) {
  l->regs[REG_ICR2] = v & 0xff000000;
}

static u32 lvt_writable(struct x86_lapic *l, unsigned reg) {
  u32 base = LVT_MASKED | LVT_STATUS | LVT_VECTOR;
  switch (reg) {
  case REG_LVT_TIMER:
    return base | LVT_PERIODIC | (x86_has(l->c, X86_FEATURE_TSC_DEADLINE) ? LVT_DEADLINE : 0);
  case REG_LVT_LINT0:
  case REG_LVT_LINT1:
    return base | LVT_MODE | LVT_POLARITY | LVT_REMOTE | LVT_LEVEL;
  case REG_LVT_ERROR:
    return base;
  default:
    return base | LVT_MODE;
  }
}

static void write_lvt(struct x86_lapic *l, unsigned reg, u32 v) {
  if (!lapic_sw(l)) v |= LVT_MASKED;
  l->regs[reg] = v & lvt_writable(l, reg);
  if (reg == REG_LVT_LINT0) lapic_publish(l);
  if (reg == REG_LVT_TIMER) lapic_timer_lvt_changed(l);
}

static void write_tmict(struct x86_lapic *l, unsigned reg, u32 v) {
  lapic_timer_start(l, v);
}

static void write_tdcr(struct x86_lapic *l, unsigned reg, u32 v) {
  l->regs[REG_TDCR] = v & 0xb;
  lapic_timer_divide_changed(l);
}

static void write_self(struct x86_lapic *l, unsigned reg, u32 v) {
  lapic_send_icr(l, (u32)APIC_TO_SELF << 18 | ICR_ASSERT | (v & 0xff), 0);
}

/* One register.  A NULL function: not readable, or not writable, in that mode. */
struct reg_row {
  u32 (*read)(struct x86_lapic *l, unsigned reg);
  void (*write)(struct x86_lapic *l, unsigned reg, u32 v);
  u32 x2_bits; /* x2APIC: bits a write may have set; others are #GP(0) (SDM Vol. 3A 10.12.1.3) */
  u8 only;     /* ONLY_* */
};
#define ONLY_XAPIC  1 /* not there in x2APIC mode */
#define ONLY_X2APIC 2
#define XAPIC_WRITE 4 /* read-only in x2APIC mode */

#define LVT_X2 (LVT_VECTOR | LVT_STATUS | LVT_MASKED)

static const struct reg_row reg_rows[APIC_REGS] = {
    [REG_ID] = {read_plain, write_id, 0, XAPIC_WRITE},
    [REG_VERSION] = {read_version},
    [REG_TPR] = {read_plain, write_tpr, 0xff},
    [REG_APR] = {read_zero, NULL, 0, ONLY_XAPIC},
    [REG_PPR] = {read_ppr},
    [REG_EOI] = {NULL, write_eoi, 0},
    [REG_LDR] = {read_plain, write_ldr, 0, XAPIC_WRITE},
    [REG_DFR] = {read_plain, write_dfr, 0, ONLY_XAPIC},
    [REG_SVR] = {read_plain, write_svr, 0xff | SVR_ENABLE | SVR_FOCUS | SVR_DIRECTED},
    [REG_ISR... REG_ISR + 7] = {read_isr},
    [REG_TMR... REG_TMR + 7] = {read_tmr},
    [REG_IRR... REG_IRR + 7] = {read_irr},
    [REG_ESR] = {read_plain, write_esr, 0},
    [REG_LVT_CMCI] = {read_plain, write_lvt, LVT_X2 | LVT_MODE},
    [REG_ICR] = {read_plain, write_icr, 0, ONLY_XAPIC}, /* one 64-bit register in x2APIC mode: see below */
    [REG_ICR2] = {read_plain, write_icr2, 0, ONLY_XAPIC},
    [REG_LVT_TIMER] = {read_plain, write_lvt, LVT_X2 | LVT_TIMER},
    [REG_LVT_THERMAL] = {read_plain, write_lvt, LVT_X2 | LVT_MODE},
    [REG_LVT_PMC] = {read_plain, write_lvt, LVT_X2 | LVT_MODE},
    [REG_LVT_LINT0] = {read_plain, write_lvt, LVT_X2 | LVT_MODE | LVT_POLARITY | LVT_REMOTE | LVT_LEVEL},
    [REG_LVT_LINT1] = {read_plain, write_lvt, LVT_X2 | LVT_MODE | LVT_POLARITY | LVT_REMOTE | LVT_LEVEL},
    [REG_LVT_ERROR] = {read_plain, write_lvt, LVT_X2},
    [REG_TMICT] = {read_plain, write_tmict, 0xffffffff},
    [REG_TMCCT] = {read_current},
    [REG_TDCR] = {read_plain, write_tdcr, 0xb},
    [REG_SELF_IPI] = {NULL, write_self, 0xff, ONLY_X2APIC},
};

/* The row of a register that exists in this mode, or NULL. */
static const struct reg_row *find_row(struct x86_lapic *l, unsigned reg, bool x2) {
  const struct reg_row *row = reg < APIC_REGS ? &reg_rows[reg] : NULL;
  if (!row || (!row->read && !row->write) || (row->only & (x2 ? ONLY_XAPIC : ONLY_X2APIC))) return NULL;
  return reg == REG_LVT_CMCI && !has_cmci(l) ? NULL : row;
}

/* ---- the page ---- */

/* Where the page would be while the APIC is off or in x2APIC mode: KVM_X86_QUIRK_LAPIC_MMIO_HOLE lets it read as ones. */
static int hole(struct x86_lapic *l) {
  return l->chip->vm->disabled_quirks & KVM_X86_QUIRK_LAPIC_MMIO_HOLE ? -EOPNOTSUPP : 0;
}

/* Loads may be 1, 2 or 4 bytes within the 32 bits of a register (the manual promises only 4). */
int x86_lapic_mmio_read(struct x86_vcpu *c, gpa_t gpa, unsigned len, void *data) {
  struct x86_lapic *l = c->lapic;
  if (!x86_lapic_hit(c, gpa)) return -EOPNOTSUPP;
  if (!lapic_hw(l) || lapic_x2(l)) {
    memset(data, 0xff, len);
    return hole(l);
  }
  memset(data, 0, len);
  unsigned at = gpa & 0xfff, in = at & 0xf;
  if (in + len > 4) return 0;
  const struct reg_row *row = find_row(l, at >> 4, false);
  if (!row) lapic_error(l, ESR_REGISTER);
  if (!row || !row->read) return 0;
  x86_lapic_sync(c);
  if (unlikely(c->tpr_reporting) && at >> 4 == REG_TPR) lapic_report_tpr(l, false);
  u32 v = row->read(l, at >> 4);
  memcpy(data, (u8 *)&v + in, len);
  return 0;
}

/* Stores must be 4 bytes, aligned to 16 (SDM Vol. 3A 10.4.1); others do nothing. */
int x86_lapic_mmio_write(struct x86_vcpu *c, gpa_t gpa, unsigned len, const void *data) {
  struct x86_lapic *l = c->lapic;
  if (!x86_lapic_hit(c, gpa)) return -EOPNOTSUPP;
  if (!lapic_hw(l) || lapic_x2(l)) return hole(l);
  u32 v;
  if (len != 4 || (gpa & 0xf)) return 0;
  memcpy(&v, data, 4);
  unsigned reg = (gpa & 0xfff) >> 4;
  const struct reg_row *row = find_row(l, reg, false);
  if (!row) lapic_error(l, ESR_REGISTER);
  if (!row || !row->write) return 0;
  x86_lapic_sync(c);
  if (unlikely(c->tpr_reporting) && reg == REG_TPR) lapic_report_tpr(l, true);
  row->write(l, reg, v);
  return 0;
}

/* ---- x2APIC MSRs ---- */

/* ICR bits 31:20, 17:16 and 13 are reserved; 12 reads as zero. */
#define X2_ICR_RESERVED 0xfff32000ull

static int x2_icr_write(struct x86_lapic *l, u64 v) {
  if (v & X2_ICR_RESERVED) return -1;
  l->regs[REG_ICR] = (u32)v & ~ICR_BUSY;
  l->regs[REG_ICR2] = (u32)(v >> 32);
  lapic_send_icr(l, l->regs[REG_ICR], l->regs[REG_ICR2]);
  return 0;
}

int x86_x2apic_read(struct x86_vcpu *c, u32 msr, u64 *value) {
  struct x86_lapic *l = c->lapic;
  if (!l || !lapic_x2(l)) return -1;
  unsigned reg = msr - 0x800;
  x86_lapic_sync(c);
  if (reg == REG_ICR) {
    *value = (u64)l->regs[REG_ICR2] << 32 | l->regs[REG_ICR];
    return 0;
  }
  const struct reg_row *row = find_row(l, reg, true);
  if (!row || !row->read) return -1;
  *value = row->read(l, reg);
  return 0;
}

int x86_x2apic_write(struct x86_vcpu *c, u32 msr, u64 value) {
  struct x86_lapic *l = c->lapic;
  if (!l || !lapic_x2(l)) return -1;
  unsigned reg = msr - 0x800;
  if (reg == REG_ICR) return x2_icr_write(l, value);
  const struct reg_row *row = find_row(l, reg, true);
  if (!row || !row->write || (row->only & XAPIC_WRITE) || (value & ~(u64)row->x2_bits)) return -1;
  x86_lapic_sync(c);
  row->write(l, reg, (u32)value);
  return 0;
}

/* ---- CR8 ---- */

u64 x86_lapic_get_cr8(struct x86_vcpu *c) {
  return c->lapic ? c->lapic->regs[REG_TPR] >> 4 & 0xf : c->cr8;
}

void x86_lapic_set_cr8(struct x86_vcpu *c, u64 v) {
  if (!c->lapic) return;
  x86_lapic_sync(c);
  write_tpr(c->lapic, REG_TPR, (u32)(v & 0xf) << 4);
}

/* ---- IA32_APIC_BASE ---- */

bool x86_lapic_enabled(struct x86_vcpu *c) {
  return c->lapic && lapic_hw(c->lapic) && lapic_sw(c->lapic);
}

u32 x86_lapic_id(struct x86_vcpu *c) {
  u32 ident = c->lapic ? lapic_ident(c->lapic) : IDENT_X2;
  return ident & IDENT_X2 ? c->core.id : IDENT_XID(ident);
}

/* The client may set it from any mode to any other; registers follow (SDM Vol. 3A 10.12.5). */
static void set_base(struct x86_vcpu *c, u64 value) {
  u64 changed = c->apic_base ^ value;
  struct x86_lapic *l = c->lapic;
  c->apic_base = value;
  if (changed & APIC_BASE_ENABLE) x86_cpuid_apic_changed(c);
  if (!l) return;
  if (changed & value & APIC_BASE_ENABLE) l->regs[REG_ID] = c->core.id << 24;
  if (changed & value & APIC_BASE_X2) {
    l->regs[REG_ID] = c->core.id;
    l->regs[REG_LDR] = x2apic_ldr(c->core.id);
  }
  lapic_publish(l);
  priority_lowered(l);
}

static u64 base_reserved(struct x86_vcpu *c) {
  unsigned bits = x86_maxphyaddr(c);
  u64 reserved = (bits < 64 ? ~(BIT(bits) - 1) : 0) | 0x2ff;
  return x86_has(c, X86_FEATURE_X2APIC) ? reserved : reserved | APIC_BASE_X2;
}

int x86_apic_base_write(struct x86_vcpu *c, u64 value, bool host) {
  u64 mode = APIC_BASE_ENABLE | APIC_BASE_X2, from = c->apic_base & mode, to = value & mode;
  if ((value & base_reserved(c)) || to == APIC_BASE_X2) return -1;
  if (!host && from == mode && to == APIC_BASE_ENABLE) return -1; /* x2APIC to xAPIC, */
  if (!host && !from && to == mode) return -1;                    /* and off to x2APIC, are no transitions */
  set_base(c, value);
  return 0;
}

/* ---- life ---- */

/* Power-up and INIT state (SDM Vol. 3A 10.4.7.1, 10.4.7.3).  KVM_X86_QUIRK_LINT0_REENABLED: the boot CPU starts wired to the PIC.
 */
static void reset_registers(struct x86_lapic *l) {
  for (unsigned reg = 0; reg < APIC_REGS; reg++)
    if (reg != REG_ID && !(reg == REG_LDR && lapic_x2(l))) l->regs[reg] = 0;
  for (unsigned reg = REG_LVT_TIMER; reg <= REG_LVT_ERROR; reg++) l->regs[reg] = LVT_MASKED;
  l->regs[REG_LVT_CMCI] = LVT_MASKED;
  if (l->c->core.id == l->chip->vm->boot_cpu_id && !(l->chip->vm->disabled_quirks & KVM_X86_QUIRK_LINT0_REENABLED))
    l->regs[REG_LVT_LINT0] = APIC_EXTINT << 8;
  l->regs[REG_DFR] = 0xffffffff;
  l->regs[REG_SVR] = 0xff;
}

void x86_lapic_reset(struct x86_vcpu *c, bool init) {
  struct x86_lapic *l = c->lapic;
  if (!init) {
    u64 bsp = c->core.id == x86_vm_of(c)->boot_cpu_id ? APIC_BASE_BSP : 0;
    set_base(c, APIC_BASE_ADDR | APIC_BASE_ENABLE | bsp);
  }
  if (!l) return;
  if (!init) l->regs[REG_ID] = c->core.id << 24;
  reset_registers(l);
  lapic_timer_restore(l, 0);
  lapic_clear_vectors(l);
  atomic_store(&l->errors, 0);
  atomic_store(&l->error_raised, false);
  atomic_store(&l->arb_prio, 0);
  l->pv_eoi = 0;
  l->pv_eoi_pending = false;
  l->external_vector = -1;
  lapic_publish(l);
}

int x86_lapic_create(struct x86_vcpu *c) {
  struct x86_irqchip *chip = x86_vm_of(c)->irqchip;
  if (!chip) return 0;
  unsigned n = c->core.index;
  if (n >= APIC_MAX_VCPUS || c->core.id >= APIC_MAX_ID) return -EINVAL;
  struct x86_lapic *l = calloc(1, sizeof(*l));
  if (!l) return -ENOMEM;
  l->c = c;
  l->chip = chip;
  l->external_vector = -1;
  l->eoi_exit_gen = atomic_load(&chip->route_gen) - 1;
  lapic_timer_init(l);
  c->lapic = l;
  atomic_store_explicit(&chip->lapics[n], l, memory_order_release);
  if (atomic_load(&chip->n_lapics) <= n) atomic_store_explicit(&chip->n_lapics, n + 1, memory_order_release);
  return 0;
}

/* vCPUs go with their VM: nobody delivers any more except the chips' timers, which end first. */
void x86_lapic_destroy(struct x86_vcpu *c) {
  struct x86_lapic *l = c->lapic;
  if (!l) return;
  x86_pit_quiesce(l->chip->vm);
  if (l->chip->ioapic) x86_ioapic_quiesce(l->chip->ioapic);
  lapic_timer_destroy(l);
  atomic_store(&l->chip->lapics[c->core.index], NULL);
  lapic_map_rebuild(l->chip);
  c->lapic = NULL;
  free(l);
}

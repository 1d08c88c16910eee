/* The local APIC of one vCPU: state shared by lapic.c, lapic_timer.c, ipi.c and state.c.
 *
 * The owner is whoever holds vcpu->mutex (the running vCPU).  Others only post: they set bits of pir[] and tmr[], collect
 * errors, and request; nobody else's registers are read except through `ident`, a snapshot of what addressing needs.
 */
#ifndef X86_IRQCHIP_LAPIC_H
#define X86_IRQCHIP_LAPIC_H

#include "x86/irqchip/chips.h"

/* Register numbers: page offset >> 4, and MSR - 0x800 (SDM Vol. 3A tables 10-1 and 10-6). */
enum apic_reg {
  REG_ID = 0x02,
  REG_VERSION,
  REG_TPR = 0x08,
  REG_APR,
  REG_PPR,
  REG_EOI,
  REG_LDR = 0x0d,
  REG_DFR,
  REG_SVR,
  REG_ISR = 0x10,
  REG_TMR = 0x18,
  REG_IRR = 0x20,
  REG_ESR = 0x28,
  REG_LVT_CMCI = 0x2f,
  REG_ICR = 0x30,
  REG_ICR2,
  REG_LVT_TIMER = 0x32,
  REG_LVT_THERMAL,
  REG_LVT_PMC,
  REG_LVT_LINT0,
  REG_LVT_LINT1,
  REG_LVT_ERROR,
  REG_TMICT = 0x38,
  REG_TMCCT,
  REG_TDCR = 0x3e,
  REG_SELF_IPI,
  APIC_REGS = 0x40,
};

#define APIC_BASE_ADDR   0xfee00000ull
#define APIC_BASE_BSP    0x100ull
#define APIC_BASE_X2     0x400ull
#define APIC_BASE_ENABLE 0x800ull

#define SVR_ENABLE   0x100u
#define SVR_FOCUS    0x200u
#define SVR_DIRECTED 0x1000u /* suppress EOI broadcasts */

#define LVT_VECTOR   0xffu
#define LVT_MODE     0x700u
#define LVT_STATUS   0x1000u
#define LVT_POLARITY 0x2000u
#define LVT_REMOTE   0x4000u
#define LVT_LEVEL    0x8000u
#define LVT_MASKED   0x10000u
#define LVT_ONESHOT  0x00000u
#define LVT_PERIODIC 0x20000u
#define LVT_DEADLINE 0x40000u
#define LVT_TIMER    0x60000u

#define ICR_BUSY    0x1000u
#define ICR_LOGICAL 0x800u
#define ICR_ASSERT  0x4000u
#define ICR_LEVEL   0x8000u

/* Error status (SDM Vol. 3A 10.5.3). */
#define ESR_SEND_VECTOR    0x20u
#define ESR_RECEIVE_VECTOR 0x40u
#define ESR_REGISTER       0x80u

/* Bits of `ident`. */
#define IDENT_HW      0x01u /* globally enabled (IA32_APIC_BASE) */
#define IDENT_X2      0x02u
#define IDENT_SW      0x04u /* software enabled (SVR) */
#define IDENT_FLAT    0x08u
#define IDENT_CLUSTER 0x10u
#define IDENT_PIC     0x20u                /* takes interrupts of the PIC (LINT0 is ExtINT, or the APIC is off) */
#define IDENT_NMI     0x40u                /* LINT0 is NMI */
#define IDENT_XID(i)  (((i) >> 8) & 0xff)  /* xAPIC ID */
#define IDENT_LID(i)  (((i) >> 16) & 0xff) /* logical ID of xAPIC mode */

/* Legend: [o] owner only  [t] timer->lock */
struct lapic_timer {
  struct evtimer ev;
  pthread_mutex_t lock;
  u64 wake_ns;        /* [t] when ev fires; 0: not armed.  Never later than target_ns, may be earlier */
  u64 target_ns;      /* [t] when the timer is due; 0: not running */
  _Atomic bool fired; /* due; the owner delivers */
  u32 mode;           /* [o] LVT_ONESHOT, _PERIODIC, _DEADLINE */
  u32 divide;         /* [o] 1..128 */
  u64 period_ns;      /* [o] of the initial count */
  u64 due_ns;         /* [o] one-shot and periodic: end of the current count; 0: stopped */
  u64 deadline;       /* [o] IA32_TSC_DEADLINE */
};

struct x86_lapic {
  struct x86_vcpu *c;       /* (o) */
  struct x86_irqchip *chip; /* (o) */
  /* any thread */
  _Atomic u32 ident;         /* written by the owner */
  _Atomic u32 errors;        /* ESR bits since ESR was last written */
  _Atomic bool error_raised; /* the owner must deliver the error interrupt */
  _Atomic s32 arb_prio;      /* lowest-priority interrupts taken so far: arbitration takes the smallest */
  _Atomic bool posted;       /* set after anything above or below was posted: the owner must look */
  _Atomic u64 pir[4];        /* posted requests */
  _Atomic u64 tmr[4];
  /* [o] */
  u32 regs[APIC_REGS]; /* all but ISR, TMR, IRR, PPR, version */
  u64 irr[4], isr[4];
  struct lapic_timer timer;
  u64 pv_eoi;          /* MSR_KVM_PV_EOI_EN */
  bool pv_eoi_pending; /* the guest may have done the EOI by clearing its memory bit */
  u64 vapic;           /* KVM_SET_VAPIC_ADDR; 0 none */
  u64 tpr_rip;         /* of the access that the next KVM_EXIT_TPR_ACCESS reports */
  bool tpr_write;
  int external_vector; /* split: KVM_INTERRUPT's, -1 none */
  u64 eoi_exit[4];     /* split: vectors whose EOI goes to the client */
  u32 eoi_exit_gen;    /* route_gen that eoi_exit[] was made from */
  u64 eoi_pending[4];  /* split: EOIs the client has not heard of */
};

static inline u32 lapic_ident(struct x86_lapic *l) {
  return atomic_load_explicit(&l->ident, memory_order_acquire);
}
/* Tells the owner that something was posted.  After it; release, so that who sees the mark sees what it is for. */
static inline void lapic_posted(struct x86_lapic *l) {
  atomic_store_explicit(&l->posted, true, memory_order_release);
  x86_request_event(l->c);
}
static inline bool lapic_hw(struct x86_lapic *l) {
  return l->c->apic_base & APIC_BASE_ENABLE;
}
static inline bool lapic_x2(struct x86_lapic *l) {
  return (l->c->apic_base & (APIC_BASE_ENABLE | APIC_BASE_X2)) == (APIC_BASE_ENABLE | APIC_BASE_X2);
}
static inline bool lapic_sw(struct x86_lapic *l) {
  return l->regs[REG_SVR] & SVR_ENABLE;
}
static inline u32 x2apic_ldr(u32 id) {
  return (id >> 4) << 16 | 1u << (id & 15);
}

static inline bool vec_test(const u64 *map, unsigned v) {
  return map[v >> 6] >> (v & 63) & 1;
}
static inline void vec_set(u64 *map, unsigned v) {
  map[v >> 6] |= 1ull << (v & 63);
}
static inline void vec_clear(u64 *map, unsigned v) {
  map[v >> 6] &= ~(1ull << (v & 63));
}
/* The highest vector, -1 for none. */
static inline int vec_top(const u64 *map) {
  for (int k = 3; k >= 0; k--)
    if (map[k]) return 64 * k + 63 - __builtin_clzll(map[k]);
  return -1;
}

/* ---- lapic.c ---- */
u32 lapic_version(struct x86_lapic *l);
unsigned lapic_lvt_count(struct x86_lapic *l);
u32 lapic_ppr(struct x86_lapic *l);
/* Something in the registers that others look at changed: publishes ident, rebuilds the map when needed. */
void lapic_publish(struct x86_lapic *l);
/* Delivers through an LVT entry.  Owner. */
int lapic_lvt_deliver(struct x86_lapic *l, enum apic_reg lvt);
void lapic_error(struct x86_lapic *l, u32 esr_bit);
void lapic_clear_vectors(struct x86_lapic *l);

/* ---- vapic.c ---- */
void lapic_vapic_read(struct x86_lapic *l);
void lapic_vapic_write(struct x86_lapic *l);
void lapic_report_tpr(struct x86_lapic *l, bool write);

/* ---- ipi.c ---- */
/* Takes an interrupt, from any thread.  1 taken, 0 not. */
int lapic_accept(struct x86_lapic *l, unsigned mode, unsigned vector, bool assert, bool level);
/* Whether a message of no local APIC's that names dest reaches l. */
bool lapic_matches(struct x86_lapic *l, u32 dest, bool logical);
void lapic_send_icr(struct x86_lapic *l, u32 icr, u32 dest);
void lapic_map_rebuild(struct x86_irqchip *chip);

/* ---- lapic_timer.c: all by the owner ---- */
void lapic_timer_init(struct x86_lapic *l);
void lapic_timer_destroy(struct x86_lapic *l);
void lapic_timer_stop(struct x86_lapic *l);
void lapic_timer_lvt_changed(struct x86_lapic *l);
void lapic_timer_start(struct x86_lapic *l, u32 initial);
void lapic_timer_divide_changed(struct x86_lapic *l);
/* After the registers were replaced: `current` is the count to go on from. */
void lapic_timer_restore(struct x86_lapic *l, u32 current);
u32 lapic_timer_current(struct x86_lapic *l);
void lapic_timer_expire(struct x86_lapic *l);
/* The vCPU is about to sleep. */
void lapic_timer_sleeps(struct x86_lapic *l);

#endif

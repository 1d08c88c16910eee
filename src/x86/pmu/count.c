/* Counting: totals, the counters as differences of them, overflow. */
#include <Zydis/Zydis.h>
#include "x86/block.h"
#include "x86/cpu/tsc.h"
#include "x86/pmu/pmu.h"

#define LVT_PMC 0x340u

static u64 mask(void) { return BIT(PMU_WIDTH) - 1; }

/* ---- totals ---- */

static unsigned ring(const struct x86_vcpu *c) { return c->cpl == 3; }

static void add_cycles(struct x86_pmu *p, unsigned to) {
  if (!p->entered) return;
  u64 now = x86_host_tsc();
  p->total[PMU_CYCLES][to] += now - p->entered;
  p->entered = now;
}

/* Instructions of the running block that are done: they are in no total yet. */
static u64 within_block(const struct x86_pmu *p, enum pmu_source source, unsigned r) {
  return source == PMU_INSNS && p->block && p->c->cur && r == ring(p->c) ? (u64)(p->c->cur - p->block) : 0;
}

static u64 total(const struct x86_pmu *p, enum pmu_source source, unsigned rings) {
  u64 t = 0;
  for (unsigned r = 0; r < 2; r++)
    if (rings >> r & 1) t += p->total[source][r] + within_block(p, source, r);
  if (source == PMU_CYCLES && p->entered && (rings >> (p->by_ring ? ring(p->c) : 0) & 1)) t += x86_host_tsc() - p->entered;
  return t;
}

/* Jumps that may fall through: between JB and JZ, LOOP and LOOPNE, in Zydis' alphabet. */
static bool conditional(unsigned op) {
  return (op >= ZYDIS_MNEMONIC_JB && op <= ZYDIS_MNEMONIC_JZ) || (op >= ZYDIS_MNEMONIC_LOOP && op <= ZYDIS_MNEMONIC_LOOPNE);
}

void x86_pmu_block_begin(struct x86_vcpu *c, const struct x86_block *b) { c->pmu->block = b->insn; }

void x86_pmu_block_end(struct x86_vcpu *c, const struct x86_block *b, unsigned r, const struct x86_insn *last, bool done, bool jumped) {
  struct x86_pmu *p = c->pmu;
  unsigned n = (unsigned)(last - b->insn);
  p->block = NULL;
  if (n < b->n && done) { /* not the mark behind the last one */
    p->total[PMU_BRANCHES][r] += jumped || conditional(last->op);
    n++;
  }
  p->total[PMU_INSNS][r] += n;
  if (p->by_ring) add_cycles(p, r);
  pmu_check_overflow(p);
}

/* ---- counters ---- */

u64 pmu_read(const struct x86_pmu *p, const struct pmu_counter *k) {
  u64 v = k->value;
  if (k->running) v += total(p, k->source, k->rings) - k->start;
  return v & mask();
}

void pmu_write(struct x86_pmu *p, struct pmu_counter *k, u64 value) {
  k->value = value & mask();
  /* The instruction that writes is not counted. */
  if (k->running) k->start = total(p, k->source, k->rings) + (k->source == PMU_INSNS && p->block ? 1 : 0);
}

static void stop(struct x86_pmu *p, struct pmu_counter *k) {
  if (!k->running) return;
  k->value = pmu_read(p, k);
  k->running = false;
}

static void start(struct x86_pmu *p, struct pmu_counter *k, enum pmu_source source, unsigned rings, bool interrupts) {
  if (source == PMU_NOTHING || !rings || !pmu_allowed(x86_vm_of(p->c), p, k)) return;
  k->source = source;
  k->rings = (u8)rings;
  k->interrupts = interrupts;
  k->running = true;
  pmu_write(p, k, k->value);
}

/* ---- overflow ---- */

static void check_one(struct x86_pmu *p, struct pmu_counter *k, unsigned status_bit) {
  if (!k->running || k->value + (total(p, k->source, k->rings) - k->start) <= mask()) return;
  k->value = pmu_read(p, k);
  k->start = total(p, k->source, k->rings);
  p->global_status |= BIT(status_bit);
  if (k->interrupts) x86_lapic_local(p->c, LVT_PMC);
}

void pmu_check_overflow(struct x86_pmu *p) {
  for (unsigned n = 0; n < p->n_gp; n++) check_one(p, &p->gp[n], n);
  for (unsigned n = 0; n < p->n_fixed; n++) check_one(p, &p->fixed[n], 32 + n);
}

/* Cycles that are not looked at by block: when the first counter that interrupts may overflow, if guest code runs until then. */
static void arm(struct x86_pmu *p) {
  u64 left = ~0ull;
  for (unsigned n = 0; n < p->n_gp + p->n_fixed; n++) {
    const struct pmu_counter *k = n < p->n_gp ? &p->gp[n] : &p->fixed[n - p->n_gp];
    if (k->running && k->interrupts && k->source == PMU_CYCLES) left = MIN(left, mask() + 1 - pmu_read(p, k));
  }
  if (left == ~0ull)
    evtimer_cancel(&p->timer, false);
  else
    evtimer_arm(&p->timer, clock_now_ns() + (u64)((unsigned __int128)left * 1000000 / x86_host_tsc_khz()) + 1);
}

/* ---- programming ---- */

#define SELECT_USR BIT(16)
#define SELECT_OS  BIT(17)
#define SELECT_INT BIT(20)
#define SELECT_EN  BIT(22)
#define FIXED_PMI  8u

static void start_gp(struct x86_pmu *p, struct pmu_counter *k, bool enabled) {
  unsigned event = pmu_event(k->select), rings = (k->select & SELECT_OS ? PMU_OS : 0) | (k->select & SELECT_USR ? PMU_USR : 0);
  if (!enabled || !(k->select & SELECT_EN) || event >= PMU_EVENTS || !(p->events >> event & 1)) return;
  start(p, k, pmu_event_source(event), rings, k->select & SELECT_INT);
}

static bool wants_blocks(const struct pmu_counter *k) { return k->running && (k->source != PMU_CYCLES || k->rings != (PMU_OS | PMU_USR)); }
static bool wants_rings(const struct pmu_counter *k) { return k->running && k->source == PMU_CYCLES && k->rings != (PMU_OS | PMU_USR); }

void pmu_program(struct x86_pmu *p) {
  bool counting = false, by_ring = false, cycles = false;
  for (unsigned n = 0; n < PMU_GP_MAX; n++) stop(p, &p->gp[n]);
  for (unsigned n = 0; n < PMU_FIXED_MAX; n++) stop(p, &p->fixed[n]);
  add_cycles(p, p->by_ring ? ring(p->c) : 0);
  if (atomic_load_explicit(&p->c->core.mode, memory_order_relaxed) == VCPU_RUNNING && !p->entered) p->entered = x86_host_tsc();
  for (unsigned n = 0; n < p->n_gp; n++) {
    start_gp(p, &p->gp[n], p->version < 2 || p->global_ctrl >> n & 1);
    counting |= wants_blocks(&p->gp[n]);
    by_ring |= wants_rings(&p->gp[n]);
  }
  for (unsigned n = 0; n < p->n_fixed; n++) {
    struct pmu_counter *k = &p->fixed[n];
    k->select = p->fixed_ctrl >> (4 * n) & 0xf;
    if (p->global_ctrl >> (32 + n) & 1) start(p, k, PMU_FIXED_SOURCE(n), k->select & 3, k->select & FIXED_PMI);
    counting |= wants_blocks(k);
    by_ring |= wants_rings(k);
  }
  for (unsigned n = 0; n < p->n_gp; n++) cycles |= p->gp[n].running && p->gp[n].source == PMU_CYCLES;
  for (unsigned n = 0; n < p->n_fixed; n++) cycles |= p->fixed[n].running && p->fixed[n].source == PMU_CYCLES;
  p->by_ring = by_ring;
  p->c->counting = counting;
  p->c->counts_cycles = cycles;
  if (!cycles) p->entered = 0;
  arm(p);
}

/* ---- entering and leaving guest code ---- */

void x86_pmu_enter(struct x86_vcpu *c) { c->pmu->entered = x86_host_tsc(); }

void x86_pmu_leave(struct x86_vcpu *c) {
  add_cycles(c->pmu, c->pmu->by_ring ? ring(c) : 0);
  c->pmu->entered = 0;
}

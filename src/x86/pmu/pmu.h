/* Performance counters of a vCPU: architectural performance monitoring, version 2 (SDM Vol. 3B 20.2).
 *
 * Three things are counted: instructions, branches, and cycles of the time-stamp counter while guest code runs.  A counter is a
 * difference of such totals, taken when it is read or stopped.  Totals of instructions and branches, and cycles by ring, need a
 * look at every block: x86_vcpu.counting says that some counter wants it.  Plain cycles cost nothing but a reading at entry and
 * exit; their overflow is found by a timer.
 */
#ifndef X86_PMU_PMU_H
#define X86_PMU_PMU_H

#include "base/evloop.h"
#include "x86/x86.h"

#define PMU_GP_MAX    4
#define PMU_FIXED_MAX 3
#define PMU_WIDTH     48
/* Architectural events (CPUID.0AH:EBX) that are counted: core cycles, instructions, reference cycles, branches. */
#define PMU_EVENTS      7
#define PMU_UNAVAILABLE 0x58u /* cache references, cache misses, mispredicted branches */

enum pmu_source { PMU_NOTHING, PMU_CYCLES, PMU_INSNS, PMU_BRANCHES, PMU_SOURCES };
enum { PMU_OS = 1, PMU_USR = 2 }; /* rings counted; totals[][0] and [][1] */

struct pmu_counter {
  u64 select; /* IA32_PERFEVTSELx */
  u64 value;  /* when it was started or stopped last */
  u64 start;  /* what `source` had reached then */
  enum pmu_source source;
  u8 rings;
  bool running, interrupts;
};

/* By vcpu->mutex, except the timer. */
struct x86_pmu {
  struct x86_vcpu *c;
  u8 version, n_gp, n_fixed; /* from the guest's CPUID; version 0: no counters */
  u32 events;                /* bits by architectural event */
  struct pmu_counter gp[PMU_GP_MAX], fixed[PMU_FIXED_MAX];
  u64 fixed_ctrl, global_ctrl, global_status;
  u64 total[PMU_SOURCES][2];
  u64 entered;                  /* host TSC up to which cycles are in the total; 0 while no guest code runs */
  u64 frozen;                   /* the time while counters are programmed, else 0 */
  bool by_ring, wants_rings;    /* cycles are attributed to rings, block by block; the next setting */
  bool armed;                   /* the timer */
  const struct x86_insn *block; /* first instruction of the block that is running counted, else NULL */
  struct evtimer timer;
};

/* Architectural event of an event select and unit mask; PMU_EVENTS and above: none that is counted. */
unsigned pmu_event(u64 select);
enum pmu_source pmu_event_source(unsigned event);
#define PMU_FIXED_SOURCE(n) ((n) == 0 ? PMU_INSNS : PMU_CYCLES)

/* ---- count.c ---- */
u64 pmu_read(const struct x86_pmu *p, const struct pmu_counter *k);
void pmu_write(struct x86_pmu *p, struct pmu_counter *k, u64 value);
/* Registers, CPUID or filter changed: which counters run, and how the rest of the engine has to help. */
void pmu_program(struct x86_pmu *p);
/* Marks overflows and delivers their interrupts. */
void pmu_check_overflow(struct x86_pmu *p);

/* ---- filter.c ---- */
bool pmu_allowed(struct x86_vm *vm, const struct x86_pmu *p, const struct pmu_counter *k);

#endif

/* The PMU of a vCPU: what its CPUID gives it, and its life. */
#include <errno.h>
#include <stdlib.h>
#include "x86/cpuid/cpuid.h"
#include "x86/pmu/pmu.h"

/* SDM Vol. 3B table 20-1: event select and unit mask of the architectural events that are counted. */
static const struct {
  u16 select;
  u8 event, source;
} events[] = {
    {0x003c, 0, PMU_CYCLES},   /* core cycles */
    {0x00c0, 1, PMU_INSNS},    /* instructions retired */
    {0x013c, 2, PMU_CYCLES},   /* reference cycles */
    {0x00c4, 5, PMU_BRANCHES}, /* branches retired */
};

unsigned pmu_event(u64 select) {
  for (unsigned n = 0; n < ARRAY_SIZE(events); n++)
    if (events[n].select == (select & 0xffff)) return events[n].event;
  return PMU_EVENTS;
}

enum pmu_source pmu_event_source(unsigned event) {
  for (unsigned n = 0; n < ARRAY_SIZE(events); n++)
    if (events[n].event == event) return (enum pmu_source)events[n].source;
  return PMU_NOTHING;
}

static void timer(struct evtimer *t) { vcpu_request(&container_of(t, struct x86_pmu, timer)->c->core, REQ_PMU); }

int x86_pmu_create(struct x86_vcpu *c) {
  struct x86_pmu *p = calloc(1, sizeof(*p));
  if (!p) return -ENOMEM;
  p->c = c;
  evtimer_init(&p->timer, c->core.vm->evloop, timer);
  c->pmu = p;
  return 0;
}

void x86_pmu_destroy(struct x86_vcpu *c) {
  if (!c->pmu) return;
  evtimer_cancel(&c->pmu->timer, true);
  free(c->pmu);
  c->pmu = NULL;
}

/* Power-on; INIT leaves counters alone (SDM Vol. 3A table 9-1). */
void x86_pmu_reset(struct x86_vcpu *c) {
  struct x86_pmu *p = c->pmu;
  p->fixed_ctrl = p->global_ctrl = p->global_status = 0;
  for (unsigned n = 0; n < PMU_GP_MAX; n++) p->gp[n] = (struct pmu_counter){0};
  for (unsigned n = 0; n < PMU_FIXED_MAX; n++) p->fixed[n] = (struct pmu_counter){0};
  pmu_program(p);
}

/* CPUID leaf 0AH says what there is, within what the engine has. */
void x86_pmu_cpuid_changed(struct x86_vcpu *c) {
  struct x86_pmu *p = c->pmu;
  const struct kvm_cpuid_entry2 *e = x86_cpuid_find(c, c->cpuid->entries, c->cpuid->n, 0xa, 0);
  x86_pmu_reset(c);
  p->version = p->n_gp = p->n_fixed = 0;
  p->events = 0;
  if (e && !c->cpuid->amd && !x86_vm_of(c)->pmu_disabled) {
    p->version = (u8)MIN(e->eax & 0xff, 2u);
    p->n_gp = (u8)(p->version ? MIN(e->eax >> 8 & 0xff, (u32)PMU_GP_MAX) : 0);
    p->n_fixed = (u8)(p->version > 1 ? MIN(e->edx & 0x1f, (u32)PMU_FIXED_MAX) : 0);
    p->events = ~(e->ebx | PMU_UNAVAILABLE) & (u32)(BIT(MIN(e->eax >> 24, (u32)PMU_EVENTS)) - 1);
  }
  if (p->version > 1) p->global_ctrl = BIT(p->n_gp) - 1; /* SDM Vol. 3B 20.2.2, table 10-1: its state after power-up */
  pmu_program(p);
}

void x86_pmu_request(struct x86_vcpu *c) {
  pmu_check_overflow(c->pmu);
  pmu_program(c->pmu);
}

/* RDPMC (SDM Vol. 2B): bit 31 asks for the low half, bit 30 for a fixed counter. */
int x86_rdpmc(struct x86_vcpu *c, u32 number, u64 *value) {
  struct x86_pmu *p = c->pmu;
  bool fixed = number & BIT(30), low = number & BIT(31);
  u32 n = number & 0x3fffffff;
  if (!p->version || n >= (fixed ? p->n_fixed : p->n_gp)) return x86_gp0(c);
  if (!(c->cr4 & CR4_PCE) && c->cpl && (c->cr0 & CR0_PE)) return x86_gp0(c);
  *value = pmu_read(p, fixed ? &p->fixed[n] : &p->gp[n]);
  if (low) *value = (u32)*value;
  return X86_OK;
}

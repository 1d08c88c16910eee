/* CPU models: what CPUID tells the guest. */
#ifndef VMM_MACHINE_CPUMODEL_H
#define VMM_MACHINE_CPUMODEL_H

#include <stdbool.h>
#include <stdint.h>

struct kvm_cpuid2;

enum { CPU_MAX_CHANGES = 32, CPU_ERR_LEN = 256 };

struct cpu_feature;
struct cpu_vendor;

struct cpu_model {
  unsigned level;                  /* x86-64-v1 .. v4: 1 .. 4; 5: max */
  const struct cpu_vendor *vendor; /* NULL: the accelerator's */
  struct {
    const struct cpu_feature *feature;
    bool on;
  } change[CPU_MAX_CHANGES];
  unsigned changes;
};

/* "MODEL[,+f|-f|vendor=V]...".  0, or -1 and a sentence in err. */
int cpu_model_parse(const char *spec, struct cpu_model *model, char err[CPU_ERR_LEN]);

/* Reduces what the accelerator supports to the model, and fills in what all vCPUs share.  table has room for `room` entries.
 * -1 and err where the model needs what the accelerator lacks. */
int cpu_model_apply(const struct cpu_model *model, struct kvm_cpuid2 *table, uint32_t room, unsigned cpus, bool tsc_deadline,
                    char err[CPU_ERR_LEN]);

/* Fills in what differs by vCPU: the APIC ids. */
void cpu_model_number(struct kvm_cpuid2 *table, uint32_t apic_id);

/* Bits of guest-physical addresses (leaf 0x80000008). */
unsigned cpu_model_phys_bits(const struct kvm_cpuid2 *table);

#endif

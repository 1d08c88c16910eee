/* The VM object: its interrupt controllers and timer in the kernel, interrupt routes, messages and doorbells. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vmm/boot/layout.h"
#include "vmm/machine/machine_priv.h"

int vm_ioctl(struct vmm *vmm, unsigned long request, void *arg) {
  return vmm->accel->ioctl(vmm->vm_fd, request, arg);
}

static int system_ioctl(struct vmm *vmm, unsigned long request, uintptr_t arg) {
  return vmm->accel->ioctl(vmm->kvm_fd, request, (void *)arg);
}

/* What the machine cannot do without. */
static const struct {
  int cap;
  const char *name;
} required[] = {
    {KVM_CAP_IRQCHIP, "interrupt controllers (KVM_CAP_IRQCHIP)"},
    {KVM_CAP_USER_MEMORY, "user memory (KVM_CAP_USER_MEMORY)"},
    {KVM_CAP_PIT2, "the interval timer (KVM_CAP_PIT2)"},
    {KVM_CAP_EXT_CPUID, "CPUID (KVM_CAP_EXT_CPUID)"},
    {KVM_CAP_IRQ_ROUTING, "interrupt routing (KVM_CAP_IRQ_ROUTING)"},
    {KVM_CAP_SIGNAL_MSI, "message-signalled interrupts (KVM_CAP_SIGNAL_MSI)"},
    {KVM_CAP_IOEVENTFD, "event descriptors (KVM_CAP_IOEVENTFD)"},
    {KVM_CAP_IMMEDIATE_EXIT, "immediate_exit (KVM_CAP_IMMEDIATE_EXIT)"},
    {KVM_CAP_MP_STATE, "processor states (KVM_CAP_MP_STATE)"},
    {KVM_CAP_XSAVE, "extended state (KVM_CAP_XSAVE)"},
};

static int check_capabilities(struct vmm *vmm, char *err) {
  for (size_t i = 0; i < sizeof(required) / sizeof(required[0]); i++)
    if (system_ioctl(vmm, KVM_CHECK_EXTENSION, (uintptr_t)required[i].cap) <= 0)
      return machine_fail(err, "the '%s' accelerator lacks %s", vmm->accel->name, required[i].name);
  return 0;
}

static int open_system(struct vmm *vmm, char *err) {
  vmm->kvm_fd = vmm->accel->open();
  if (vmm->kvm_fd < 0)
    return machine_fail(err, "the '%s' accelerator cannot be opened: %s", vmm->accel->name, strerror(-vmm->kvm_fd));
  int version = system_ioctl(vmm, KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION)
    return machine_fail(err, "the '%s' accelerator speaks KVM API version %d, not %d", vmm->accel->name, version,
                        KVM_API_VERSION);
  int size = system_ioctl(vmm, KVM_GET_VCPU_MMAP_SIZE, 0);
  if (size < (int)sizeof(struct kvm_run))
    return machine_fail(err, "the '%s' accelerator gives no kvm_run area", vmm->accel->name);
  vmm->run_size = (size_t)size;
  return check_capabilities(vmm, err);
}

static int check_cpu_count(struct vmm *vmm, char *err) {
  int max = system_ioctl(vmm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
  if (max <= 0) max = 4; /* api.rst, KVM_CHECK_EXTENSION: the value to assume where it is not reported */
  if (vmm->config->cpus > (unsigned)max)
    return machine_fail(err, "%u CPUs are more than the %d that the '%s' accelerator can have", vmm->config->cpus, max,
                        vmm->accel->name);
  return 0;
}

/* GSI 0 goes to pin 2 of the I/O APIC, as on a PC; 0-15 but the cascade also go to the PICs. */
static int set_routes(struct vmm *vmm) {
  enum { ROUTES = 15 + 23 };
  struct {
    struct kvm_irq_routing head;
    struct kvm_irq_routing_entry entries[ROUTES];
  } table = {0};
  unsigned n = 0;
  for (unsigned gsi = 0; gsi < 24; gsi++) {
    if (gsi == 2) continue;
    if (gsi < 16)
      table.entries[n++] =
          (struct kvm_irq_routing_entry){.gsi = gsi,
                                         .type = KVM_IRQ_ROUTING_IRQCHIP,
                                         .u.irqchip = {gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8}};
    table.entries[n++] = (struct kvm_irq_routing_entry){
        .gsi = gsi, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi}};
  }
  table.head.nr = n;
  return vm_ioctl(vmm, KVM_SET_GSI_ROUTING, &table);
}

/* APIC ids above 254 need 32-bit destinations (api.rst, KVM_CAP_X2APIC_API). */
static int enable_wide_apic_ids(struct vmm *vmm) {
  struct kvm_enable_cap cap = {.cap = KVM_CAP_X2APIC_API,
                               .args = {KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK}};
  return vmm->config->cpus > 255 ? vm_ioctl(vmm, KVM_ENABLE_CAP, &cap) : 0;
}

static int set_tss(struct vmm *vmm) {
  return vm_ioctl(vmm, KVM_SET_TSS_ADDR, (void *)(uintptr_t)LAYOUT_TSS);
}

static int set_identity_map(struct vmm *vmm) {
  uint64_t gpa = LAYOUT_IDENTITY_MAP;
  return vm_ioctl(vmm, KVM_SET_IDENTITY_MAP_ADDR, &gpa);
}

static int create_irqchip(struct vmm *vmm) {
  return vm_ioctl(vmm, KVM_CREATE_IRQCHIP, NULL);
}

static int create_pit(struct vmm *vmm) {
  struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY}; /* port 0x61 is the kernel's too */
  return vm_ioctl(vmm, KVM_CREATE_PIT2, &pit);
}

/* The order matters: addresses before vCPUs, chips before routes. */
static const struct {
  int (*run)(struct vmm *vmm);
  const char *what;
} steps[] = {
    {set_tss, "KVM_SET_TSS_ADDR"},          {set_identity_map, "KVM_SET_IDENTITY_MAP_ADDR"},
    {create_irqchip, "KVM_CREATE_IRQCHIP"}, {create_pit, "KVM_CREATE_PIT2"},
    {set_routes, "KVM_SET_GSI_ROUTING"},    {enable_wide_apic_ids, "KVM_CAP_X2APIC_API"},
    {migration_open, "the filter of MSR_KVM_MIGRATION_CONTROL"},
};

int vm_open(struct vmm *vmm, char *err) {
  if (open_system(vmm, err) || check_cpu_count(vmm, err)) return -1;
  vmm->vm_fd = system_ioctl(vmm, KVM_CREATE_VM, 0);
  if (vmm->vm_fd < 0)
    return machine_fail(err, "the '%s' accelerator cannot create a virtual machine: %s", vmm->accel->name, strerror(-vmm->vm_fd));
  for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
    int r = steps[i].run(vmm);
    if (r < 0) return machine_fail(err, "%s failed: %s", steps[i].what, strerror(-r));
  }
  return 0;
}

void vm_close(struct vmm *vmm) {
  if (vmm->vm_fd >= 0) vmm->accel->close(vmm->vm_fd);
  if (vmm->kvm_fd >= 0) vmm->accel->close(vmm->kvm_fd);
  vmm->vm_fd = vmm->kvm_fd = -1;
}

int vm_save_chips(struct vmm *vmm, char *err) {
  int r = 0;
  for (uint32_t i = 0; i < 3 && r == 0; i++) {
    vmm->irqchips[i].chip_id = i;
    r = vm_ioctl(vmm, KVM_GET_IRQCHIP, &vmm->irqchips[i]);
  }
  if (r == 0) r = vm_ioctl(vmm, KVM_GET_PIT2, &vmm->pit);
  return r < 0 ? machine_fail(err, "the state of the interrupt controllers cannot be read: %s", strerror(-r)) : 0;
}

int vm_reset_chips(struct vmm *vmm) {
  for (int i = 0; i < 3; i++) {
    struct kvm_irqchip chip = vmm->irqchips[i];
    int r = vm_ioctl(vmm, KVM_SET_IRQCHIP, &chip);
    if (r < 0) return r;
  }
  struct kvm_pit_state2 pit = vmm->pit;
  return vm_ioctl(vmm, KVM_SET_PIT2, &pit);
}

void vmm_irq_set(struct vmm *vmm, unsigned gsi, bool level) {
  struct kvm_irq_level irq = {.irq = gsi, .level = level};
  vm_ioctl(vmm, KVM_IRQ_LINE, &irq);
}

void vmm_msi_send(struct vmm *vmm, uint64_t address, uint32_t data) {
  struct kvm_msi msi = {.address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
  vm_ioctl(vmm, KVM_SIGNAL_MSI, &msi);
}

/* Length 0 matches writes of any length; where that is not offered, the 2 bytes of a virtqueue's index. */
static int doorbell(struct vmm *vmm, uint64_t addr, bool pio, int eventfd, uint32_t flags) {
  bool any = system_ioctl(vmm, KVM_CHECK_EXTENSION, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
  struct kvm_ioeventfd e = {.addr = addr, .len = any ? 0 : 2, .fd = eventfd, .flags = flags | (pio ? KVM_IOEVENTFD_FLAG_PIO : 0)};
  int r = vm_ioctl(vmm, KVM_IOEVENTFD, &e);
  return r < 0 ? r : 0;
}

int vmm_doorbell_add(struct vmm *vmm, uint64_t addr, bool pio, int eventfd) {
  return doorbell(vmm, addr, pio, eventfd, 0);
}
int vmm_doorbell_del(struct vmm *vmm, uint64_t addr, bool pio, int eventfd) {
  return doorbell(vmm, addr, pio, eventfd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

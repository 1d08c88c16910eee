/* The machine that `uvirt run` builds: what boot code, chips and devices of the VMM see of one another.
 *
 * The VMM speaks the KVM ABI only (vmm/kvm.h) and includes nothing of src/core or of an engine.
 *
 * Threads: one thread per vCPU, and the main thread, which runs the event loop (vmm/loop.h).
 * Device handlers for port and memory accesses run on the vCPU's thread with vmm->lock held; loop callbacks run on the
 * main thread and take vmm->lock themselves with vmm_lock()/vmm_unlock().  So devices need no locks of their own.
 */
#ifndef VMM_VMM_H
#define VMM_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vmm;
struct vmm_loop;

/* Why the machine ended.  The values are the exit codes of `uvirt run` (documented in uvirt-run(1)). */
enum vmm_end {
  VMM_END_POWEROFF = 0,      /* the guest switched the machine off */
  VMM_END_ERROR = 1,         /* the VMM could not start or a host error stopped it */
  VMM_END_USAGE = 2,         /* bad command line */
  VMM_END_RESET = 3,         /* the guest asked for a reset (with --no-reboot; else the machine restarts) */
  VMM_END_PANIC = 4,         /* the guest's kernel reported a panic */
  VMM_END_TRIPLE_FAULT = 5,  /* a vCPU shut down */
  VMM_END_INTERNAL = 6,      /* KVM_EXIT_INTERNAL_ERROR or KVM_EXIT_FAIL_ENTRY */
  VMM_END_QUIT = 7,          /* the user pressed the escape key, or SIGTERM/SIGINT/SIGHUP came */
  VMM_END_DEBUG_EXIT = 32,   /* isa-debug-exit: the code is 32 + ((value << 1 | 1) & 0x5f) */
};

/* A range of ports or of guest-physical addresses that a device answers for. */
struct vmm_range_ops {
  /* Fills len bytes (1, 2, 4 or 8) at data; addr is relative to the start of the range. */
  void (*read)(void *dev, uint64_t addr, void *data, unsigned len);
  void (*write)(void *dev, uint64_t addr, const void *data, unsigned len);
};

/* Registers a range.  0, or -EEXIST for an overlap, -ENOMEM.  ops and dev must outlive the machine.  Lock: vmm->lock.
 * A port range of one byte may lie inside a longer one and then takes the byte accesses to it (0xcf9 inside 0xcf8-0xcff). */
int vmm_pio_add(struct vmm *vmm, uint16_t base, uint32_t len, const struct vmm_range_ops *ops, void *dev);
int vmm_mmio_add(struct vmm *vmm, uint64_t base, uint64_t len, const struct vmm_range_ops *ops, void *dev);
/* Removes the range that starts at base (BAR moves).  -ENOENT if there is none. */
int vmm_pio_del(struct vmm *vmm, uint16_t base);
int vmm_mmio_del(struct vmm *vmm, uint64_t base);

/* Dispatches one access from KVM_RUN; unclaimed reads give all ones.  Takes vmm->lock. */
void vmm_pio_access(struct vmm *vmm, uint16_t port, void *data, unsigned len, bool write);
void vmm_mmio_access(struct vmm *vmm, uint64_t gpa, void *data, unsigned len, bool write);

void vmm_lock(struct vmm *vmm);
void vmm_unlock(struct vmm *vmm);

/* Guest memory: host address of [gpa, gpa+len), NULL unless the whole range is RAM in one piece. */
void *vmm_ram(struct vmm *vmm, uint64_t gpa, uint64_t len);

/* Interrupts.  gsi: I/O APIC pin (0-23), level as KVM_IRQ_LINE has it.  MSI: address and data as the device was programmed. */
void vmm_irq_set(struct vmm *vmm, unsigned gsi, bool level);
void vmm_msi_send(struct vmm *vmm, uint64_t address, uint32_t data);

/* Doorbells: an eventfd that the kernel side signals when the guest writes (any value, any length) to gpa (or port), so that
 * the write does not leave KVM_RUN.  Returns 0 or -errno.  The caller owns the eventfd and watches it in the loop. */
int vmm_doorbell_add(struct vmm *vmm, uint64_t addr, bool pio, int eventfd);
int vmm_doorbell_del(struct vmm *vmm, uint64_t addr, bool pio, int eventfd);

/* Ends the machine: all vCPUs leave KVM_RUN and `uvirt run` returns `code`.  Any thread, any lock. Only the first call counts.
 * For VMM_END_RESET without --no-reboot the machine is reset and runs on. */
void vmm_end(struct vmm *vmm, int code, const char *reason);

struct vmm_loop *vmm_event_loop(struct vmm *vmm);

/* Devices that must be told of a machine reset register here; called with all vCPUs stopped and vmm->lock held. */
int vmm_on_reset(struct vmm *vmm, void (*fn)(void *dev), void *dev);
/* Called when the machine is destroyed, in reverse order of registration: no thread of the machine runs any more. */
int vmm_on_destroy(struct vmm *vmm, void (*fn)(void *dev), void *dev);

#endif

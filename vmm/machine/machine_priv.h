/* The machine's inside, shared by the files of this folder. */
#ifndef VMM_MACHINE_PRIV_H
#define VMM_MACHINE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include <linux/kvm.h>

#include "vmm/boot/boot.h"
#include "vmm/bus.h"
#include "vmm/kvm.h"
#include "vmm/machine/machine.h"

struct cpu_model;
struct vcpu_snapshot;
struct console;
struct pci_host;

/* What the vCPU threads are to do. */
enum run_state { RUN_PAUSE, RUN_GO, RUN_QUIT };

/* Fields: (o) set once before the threads start, [t] the vCPU's own thread only, [p] while all vCPUs are paused. */
struct vcpu {
  struct vmm *vmm;                /* (o) */
  unsigned index;                 /* (o) also the APIC id */
  int fd;                         /* (o) */
  struct kvm_run *run;            /* (o) */
  pthread_t thread;               /* (o) */
  bool started;                   /* (o) the thread exists */
  struct vcpu_snapshot *power_on; /* (o) */
  bool reset_due;                 /* [p] */
  uint64_t exits[64];             /* [t] */
};

struct hook {
  void (*fn)(void *dev);
  void *dev;
};
struct hook_list {
  struct hook *hooks;
  unsigned count, room;
};

/* A file that every start of the machine reads; it stays open, so that its name may go. */
struct kernel_file {
  int fd;
  bool open, keep; /* keep: a pipe, whose contents come only once */
  uint8_t *data;   /* NULL: to be read */
  size_t len;
};

/* Fields: (o) set once before the vCPUs run, [l] guarded by lock, [r] guarded by run_lock, [m] main thread only.
 * Order of locks: lock, then run_lock. */
struct vmm {
  const struct machine_config *config; /* (o) */
  const struct vmm_accel *accel;       /* (o) */
  int kvm_fd, vm_fd;                   /* (o) */
  size_t run_size;                     /* (o) of a vCPU's kvm_run mapping */
  struct vmm_loop *loop;               /* (o) */
  pthread_mutex_t lock;
  struct bus pio, pio_bytes, mmio;       /* [l]; pio_bytes: ranges of one port, looked at first for byte accesses */
  struct hook_list on_reset, on_destroy; /* (o) */

  uint8_t *memory;     /* (o) one host mapping, all of the guest's RAM */
  struct boot_ram ram; /* (o) */

  struct kernel_file kernel, initrd; /* [m] */
  struct boot_image *image;          /* [m] */
  char kernel_text[160];             /* (o) */
  struct boot_entry entry;           /* [p] */

  struct vcpu *vcpus;             /* (o) */
  unsigned vcpu_count;            /* (o) vCPUs that exist */
  struct kvm_irqchip irqchips[3]; /* (o) power-on state of the chips in the kernel */
  struct kvm_pit_state2 pit;      /* (o) */

  struct pci_host *pci;        /* (o) */
  struct console *com1, *hvc0; /* (o) */

  uint32_t migration_features;      /* (o) what of migration.c the guest's CPUID shows */
  _Atomic uint64_t migration_ready; /* MSR_KVM_MIGRATION_CONTROL */

  pthread_mutex_t run_lock;
  pthread_cond_t run_cond;
  _Atomic int run_state; /* enum run_state */
  unsigned parked;       /* [r] vCPUs that wait */
  unsigned resets;       /* [m] */

  atomic_bool end_claimed; /* vmm_end() was called; its caller writes the reason, then the code */
  _Atomic int end_code;    /* -1 until then */
  char end_reason[256];    /* valid once end_code is */
};

/* Formats the sentence, returns -1. */
int machine_fail(char *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* ioctls on the VM and on a vCPU: result or -errno. */
int vm_ioctl(struct vmm *vmm, unsigned long request, void *arg);
int vcpu_ioctl(struct vcpu *vcpu, unsigned long request, void *arg);

/* vm.c: the VM, its chips and its interrupt routes. */
int vm_open(struct vmm *vmm, char *err);
void vm_close(struct vmm *vmm);
int vm_save_chips(struct vmm *vmm, char *err);
int vm_reset_chips(struct vmm *vmm);

/* migration.c: calls and a register for a guest's migration, as far as the accelerator leaves them to us.  0 or -errno. */
int migration_open(struct vmm *vmm);
void migration_offer(struct vmm *vmm, struct kvm_cpuid2 *cpuid);         /* before the CPU model is applied, */
void migration_offered(struct vmm *vmm, const struct kvm_cpuid2 *cpuid); /* and after it */
void migration_reset(struct vmm *vmm);
void migration_hypercall(struct vcpu *vcpu);
void migration_rdmsr(struct vcpu *vcpu);
void migration_wrmsr(struct vcpu *vcpu);

/* memory.c */
int memory_check(uint64_t size, char *err);
int memory_create(struct vmm *vmm, char *err);
int memory_map(struct vmm *vmm, bool map); /* makes or removes the slots; 0 or -errno */
void memory_clear(struct vmm *vmm);
void memory_destroy(struct vmm *vmm);

/* kernel.c: files into memory, firmware tables. */
int kernel_open(struct vmm *vmm, char *err);
int kernel_load(struct vmm *vmm, char *err);
void kernel_close(struct vmm *vmm);

/* vcpu.c: making vCPUs, their threads and run loop. */
int vcpus_create(struct vmm *vmm, char *err);
int vcpus_start(struct vmm *vmm, char *err);
void vcpus_pause(struct vmm *vmm);
void vcpus_go(struct vmm *vmm);
void vcpus_quit(struct vmm *vmm); /* threads are joined */
void vcpus_destroy(struct vmm *vmm);

/* vcpu_state.c: power-on state and the entry state of the boot protocol. */
int vcpu_power_on(struct vcpu *vcpu, unsigned phys_bits, char *err); /* sets it and takes the snapshot */
int vcpu_reset(struct vcpu *vcpu); /* back to the snapshot; the first vCPU at vmm->entry.  0 or -errno */
void vcpu_snapshot_free(struct vcpu_snapshot *snapshot);

/* devices.c */
int devices_create(struct vmm *vmm, char *err);
void devices_destroy(struct vmm *vmm);

/* exits.c: what KVM_RUN came back for. */
void vcpu_handle_exit(struct vcpu *vcpu);

#endif

/* The PCI bus of the machine: the host bridge, functions with config space and BARs, INTx and MSI-X.
 *
 * PCI Local Bus 3.0 (config space, INTx, MSI-X); configuration mechanism #1 at ports 0xcf8/0xcfc, optionally ECAM.
 *
 * Locks: config and BAR accesses come with vmm->lock held.  pci_intx_set() and msix_notify() may be called by any thread with or
 * without vmm->lock; they take only the leaf locks of this folder.  Order: vmm->lock, a device's own lock, function->msix.lock,
 * host->intx_lock.
 */
#ifndef VMM_PCI_PCI_H
#define VMM_PCI_PCI_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct vmm;
struct pci_host;
struct pci_dev;

enum {
  PCI_SLOTS = 32, /* bus 0 only; one function per slot */
  PCI_PINS = 4,
  PCI_BARS = 6,
  PCI_CONFIG_SIZE = 256,
  PCI_INTX_GSI_FIRST = 16, /* I/O APIC pins 16..19 carry INTx */
  PCI_PIO_ADDRESS = 0xcf8,
  PCI_PIO_DATA = 0xcfc,
};
#define PCI_MMIO_BASE  0xc0000000ull /* the window for memory BARs: what ACPI's _CRS must name */
#define PCI_MMIO_LIMIT 0xfec00000ull /* first address behind it */
#define PCI_ECAM_SIZE  0x100000ull   /* one bus */

/* ---- for the machine ---- */

/* Makes bus 0 with its host bridge and claims ports 0xcf8-0xcff.  Takes no lock: call with vmm->lock held or before vCPUs run.
 * NULL and errno on failure. */
struct pci_host *pci_host_create(struct vmm *vmm);
/* Destroys every function (their threads end) and the host.  No vCPU runs any more; vmm->lock is NOT held. */
void pci_host_destroy(struct pci_host *host);
/* Maps ECAM for bus 0 at base (1 MiB; inside no RAM and outside the MMIO window).  0 or -errno. */
int pci_host_add_ecam(struct pci_host *host, uint64_t base);

/* For ACPI _PRT and MP tables: the GSI that INTx pin (0 = INTA) of a slot is wired to. Level-triggered. */
static inline unsigned pci_intx_gsi(unsigned slot, unsigned pin) {
  return PCI_INTX_GSI_FIRST + ((slot + pin) & 3);
}
/* True if the slot holds a function.  MP tables need one entry for each pin of each slot that does. */
bool pci_slot_present(const struct pci_host *host, unsigned slot);

/* ---- for devices ---- */

enum pci_bar_type { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

struct pci_dev_ops {
  /* Accesses to a BAR, len 1, 2, 4 or 8, offset relative to the BAR.  vmm->lock is held. */
  void (*bar_read)(struct pci_dev *dev, unsigned bar, uint64_t offset, void *data, unsigned len);
  void (*bar_write)(struct pci_dev *dev, unsigned bar, uint64_t offset, const void *data, unsigned len);
  /* The BAR became visible at base, or is about to vanish from it (doorbells).  Optional. */
  void (*bar_mapped)(struct pci_dev *dev, unsigned bar, uint64_t base);
  void (*bar_unmapped)(struct pci_dev *dev, unsigned bar, uint64_t base);
  /* Config space was read or written (called before a read, after a write; the bytes are in dev->config).  Optional. */
  void (*config_read)(struct pci_dev *dev, unsigned offset, unsigned len);
  void (*config_write)(struct pci_dev *dev, unsigned offset, unsigned len);
  /* Machine reset: all vCPUs stopped, vmm->lock held.  Optional. */
  void (*reset)(struct pci_dev *dev);
  /* Stops the device's threads and frees it, dev included if it is embedded.  vmm->lock is not held. */
  void (*destroy)(struct pci_dev *dev);
};

struct pci_bar {
  struct pci_dev *dev; /* owner, for the range callbacks */
  enum pci_bar_type type;
  uint8_t index;
  bool mapped;      /* visible at `base` now */
  uint64_t size;    /* power of two */
  uint64_t initial; /* address the VMM assigned; restored by reset */
  uint64_t base;    /* where it is mapped, while `mapped` */
};

struct msix_entry {
  uint64_t address;
  uint32_t data;
  uint32_t control; /* bit 0: masked */
};

struct msix {
  pthread_mutex_t lock; /* guards everything below (the device's threads raise vectors) */
  unsigned count;       /* vectors; 0: the function has no MSI-X */
  unsigned bar;
  unsigned cap;         /* offset of the capability in config space */
  bool enabled, masked; /* Message Control bits 15 and 14 */
  bool bus_master;      /* COMMAND bit 2: without it no message leaves */
  struct msix_entry *table;
  uint64_t *pending;
};

struct pci_dev {
  struct pci_host *host;
  const struct pci_dev_ops *ops;
  unsigned slot;
  uint8_t config[PCI_CONFIG_SIZE];
  uint8_t writable[PCI_CONFIG_SIZE];  /* bits the guest may write */
  uint8_t clearable[PCI_CONFIG_SIZE]; /* bits that writing one clears */
  uint8_t initial[PCI_CONFIG_SIZE];   /* values after reset, taken by pci_dev_add() */
  struct pci_bar bar[PCI_BARS];
  struct msix msix;
  unsigned next_cap;  /* where the next capability goes */
  unsigned last_cap;  /* the capability whose next pointer is to be set, or 0 */
  bool intx_asserted; /* the device's wish; lock: host->intx_lock */
  bool intx_disabled; /* COMMAND bit 10, as intx.c last saw it; same lock */
};

struct pci_id {
  uint16_t vendor, device, subsystem_vendor, subsystem;
  uint32_t class_code; /* base class, sub-class, interface: 0xbbssii */
  uint8_t revision;
  bool intx; /* has INTA */
};

/* Prepares dev (zeroed memory), then BARs and capabilities are described, then pci_dev_add() puts it on the bus. */
void pci_dev_init(struct pci_dev *dev, const struct pci_dev_ops *ops, const struct pci_id *id);
void pci_bar_init(struct pci_dev *dev, unsigned index, enum pci_bar_type type, uint64_t size);
/* Reserves len bytes for a capability, fills id and link; returns its offset. The rest is zero and read-only. */
unsigned pci_cap_add(struct pci_dev *dev, uint8_t id, unsigned len);
/* MSI-X with `vectors` entries, table and PBA in a BAR of their own (pci_bar_init is done here).  0 or -ENOMEM. */
int msix_init(struct pci_dev *dev, unsigned bar, unsigned vectors);
/* Assigns a slot, BAR addresses and the interrupt line and makes the function visible.  0, -ENOSPC or -errno. */
int pci_dev_add(struct pci_host *host, struct pci_dev *dev);

/* Frees what pci_dev_init() and msix_init() made; for a device's destroy. */
void pci_dev_fini(struct pci_dev *dev);

struct vmm *pci_dev_vmm(const struct pci_dev *dev);

/* A BAR access as the bus makes it (MSI-X tables included); what virtio's PCI configuration access capability uses. */
void pci_bar_access(struct pci_dev *dev, unsigned bar, uint64_t offset, void *data, unsigned len, bool write);

bool msix_enabled(struct pci_dev *dev);
/* Sends the vector's message, or marks it pending while masked.  A vector that does not exist is ignored. */
void msix_notify(struct pci_dev *dev, unsigned vector);
/* Asserts or releases INTA; the lines of functions that share a GSI are ORed. */
void pci_intx_set(struct pci_dev *dev, bool level);

/* Config accesses as the bus makes them (also what the tests use).  len 1, 2 or 4, not crossing a dword. */
uint32_t pci_config_read(struct pci_host *host, unsigned devfn, unsigned offset, unsigned len);
void pci_config_write(struct pci_host *host, unsigned devfn, unsigned offset, uint32_t value, unsigned len);

#endif

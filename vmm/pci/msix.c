/* MSI-X: the capability, the vector table with its pending bits, and sending messages.
 *
 * PCI Local Bus 3.0, section 6.8.2.  Table and pending bits share one BAR of 4 KiB or more, the pending bits in its upper half.
 * Lock: msix.lock, taken by the guest's accesses and by the threads that raise vectors; messages leave under it, so that
 * none is sent after the guest has seen its vector masked.
 */
#include "vmm/pci/pci_priv.h"

#include <errno.h>
#include <stdlib.h>

#include <linux/pci_regs.h>

#include "vmm/vmm.h"

enum { ENTRY_SIZE = sizeof(struct msix_entry), PBA_WORD = 64, BAR_MIN = 4096 };

static uint64_t pba_offset(const struct pci_dev *dev) {
  return dev->bar[dev->msix.bar].size / 2;
}

int msix_init(struct pci_dev *dev, unsigned bar, unsigned vectors) {
  struct msix *msix = &dev->msix;
  uint64_t half = BAR_MIN / 2;
  while (half < (uint64_t)vectors * ENTRY_SIZE) half *= 2;
  unsigned cap = pci_cap_add(dev, PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF);
  msix->table = calloc(vectors, sizeof *msix->table);
  msix->pending = calloc((vectors + PBA_WORD - 1) / PBA_WORD, sizeof *msix->pending);
  if (!cap || !msix->table || !msix->pending) {
    msix_free(dev);
    return -ENOMEM;
  }
  pci_bar_init(dev, bar, PCI_BAR_MEM32, 2 * half);
  msix->count = vectors;
  msix->bar = bar;
  msix->cap = cap;
  pci_set16(dev->config + cap + PCI_MSIX_FLAGS, vectors - 1);
  pci_set16(dev->writable + cap + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
  pci_set32(dev->config + cap + PCI_MSIX_TABLE, bar);
  pci_set32(dev->config + cap + PCI_MSIX_PBA, bar | (uint32_t)half);
  msix_reset(dev);
  return 0;
}

void msix_free(struct pci_dev *dev) {
  free(dev->msix.table);
  free(dev->msix.pending);
  dev->msix.table = NULL;
  dev->msix.pending = NULL;
  dev->msix.count = 0;
}

void msix_reset(struct pci_dev *dev) {
  struct msix *msix = &dev->msix;
  pthread_mutex_lock(&msix->lock);
  for (unsigned i = 0; i < msix->count; i++) {
    msix->table[i] = (struct msix_entry){.control = PCI_MSIX_ENTRY_CTRL_MASKBIT};
    msix->pending[i / PBA_WORD] = 0;
  }
  msix->enabled = msix->masked = msix->bus_master = false;
  pthread_mutex_unlock(&msix->lock);
}

/* ---- messages; msix->lock is held ---- */

static bool may_send(const struct msix *msix, unsigned vector) {
  return msix->enabled && !msix->masked && msix->bus_master && !(msix->table[vector].control & PCI_MSIX_ENTRY_CTRL_MASKBIT);
}

static void raise_locked(struct pci_dev *dev, unsigned vector) {
  struct msix *msix = &dev->msix;
  uint64_t *word = &msix->pending[vector / PBA_WORD], bit = 1ull << (vector % PBA_WORD);
  if (!may_send(msix, vector)) {
    *word |= bit;
    return;
  }
  *word &= ~bit;
  vmm_msi_send(dev->host->vmm, msix->table[vector].address, msix->table[vector].data);
}

static void send_pending_locked(struct pci_dev *dev) {
  struct msix *msix = &dev->msix;
  for (unsigned i = 0; i < msix->count; i++)
    if ((msix->pending[i / PBA_WORD] >> (i % PBA_WORD) & 1) && may_send(msix, i)) raise_locked(dev, i);
}

bool msix_enabled(struct pci_dev *dev) {
  return dev->msix.count && __atomic_load_n(&dev->msix.enabled, __ATOMIC_RELAXED);
}

void msix_notify(struct pci_dev *dev, unsigned vector) {
  pthread_mutex_lock(&dev->msix.lock);
  if (vector < dev->msix.count && dev->msix.enabled) raise_locked(dev, vector);
  pthread_mutex_unlock(&dev->msix.lock);
}

void msix_control_changed(struct pci_dev *dev) {
  struct msix *msix = &dev->msix;
  if (!msix->count) return;
  pthread_mutex_lock(&msix->lock);
  uint16_t flags = pci_get16(dev->config + msix->cap + PCI_MSIX_FLAGS);
  __atomic_store_n(&msix->enabled, flags & PCI_MSIX_FLAGS_ENABLE, __ATOMIC_RELAXED);
  msix->masked = flags & PCI_MSIX_FLAGS_MASKALL;
  msix->bus_master = dev->config[PCI_COMMAND] & PCI_COMMAND_MASTER;
  send_pending_locked(dev);
  pthread_mutex_unlock(&msix->lock);
}

/* ---- the BAR ---- */

static void table_write(struct pci_dev *dev, uint64_t offset, const void *data, unsigned len) {
  struct msix_entry *entry = &dev->msix.table[offset / ENTRY_SIZE];
  memcpy((uint8_t *)entry + offset % ENTRY_SIZE, data, len);
  entry->control &= PCI_MSIX_ENTRY_CTRL_MASKBIT; /* the rest is reserved */
  entry->address &= ~3ull;
  send_pending_locked(dev);
}

void msix_access(struct pci_dev *dev, uint64_t offset, void *data, unsigned len, bool write) {
  struct msix *msix = &dev->msix;
  uint64_t pba = pba_offset(dev), pba_len = (msix->count + PBA_WORD - 1) / PBA_WORD * 8ull;
  /* 6.8.2: only aligned dword and qword accesses are defined. */
  if ((len != 4 && len != 8) || offset % len) return;
  pthread_mutex_lock(&msix->lock);
  if (offset + len <= (uint64_t)msix->count * ENTRY_SIZE) {
    if (write)
      table_write(dev, offset, data, len);
    else
      memcpy(data, (uint8_t *)msix->table + offset, len);
  } else if (!write && offset >= pba && offset + len <= pba + pba_len) {
    memcpy(data, (uint8_t *)msix->pending + (offset - pba), len);
  }
  pthread_mutex_unlock(&msix->lock);
}

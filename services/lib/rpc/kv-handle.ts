/**
 * KV handles are sealed with the system's secret by the prefill worker that gives them, so that a decode worker
 * connects to no other address than that of a prefill worker of its system.
 */
import { ServingError } from '../process/errors.ts';
import type { SystemSecret } from '../process/system-secret.ts';
import type { KvHandle, KvHandle__Output } from './gen/llavacode/v1/KvHandle.ts';

type Unsealed = Omit<KvHandle__Output, 'seal'>;

const fieldsOf = ({ address, leaseId, fingerprint, positions, leaseMs }: Unsealed) =>
  [address, leaseId, fingerprint, positions, leaseMs] as const;

/** @param secret undefined in a system without one: its handles have no seal. */
export const sealHandle = (handle: Unsealed, secret: SystemSecret | undefined): KvHandle =>
  secret === undefined ? handle : { ...handle, seal: secret.seal('KV handle', ...fieldsOf(handle)) };

/** @throws ServingError kv_handle_untrusted */
export function assertSealed(handle: KvHandle__Output, secret: SystemSecret | undefined): void {
  if (secret === undefined || secret.isSealed(handle.seal, 'KV handle', ...fieldsOf(handle))) return;
  throw new ServingError(
    'kv_handle_untrusted',
    `the KV handle of lease ${handle.leaseId.slice(0, 64)} was not given by a prefill worker of this system`,
  );
}

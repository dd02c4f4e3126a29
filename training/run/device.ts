/** The device that a run trains on. */
import { loadOnDevice } from '../../services/lib/engine/choose-device.ts';
import { CPU, type Device, openDevice } from '../../services/lib/engine/device.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import type { Cleanup } from './cleanup.ts';
import type { TrainOptions } from './settings.ts';

/**
 * Opens the device that is asked for. Whether it computes right is found by comparing gradients (gradient-check.ts).
 * @throws ServingError config_invalid for settings that the device cannot have; provider_unavailable.
 */
export async function openTrainingDevice(
  { provider = 'cpu', frozen, workers = 1 }: TrainOptions,
  cleanup: Cleanup,
  progress: Progress,
): Promise<Device> {
  if (provider === 'cpu') return CPU;
  const log = {
    warn: ({ provider, reason }: { provider: string; reason: string }) =>
      progress.warn(`${provider} is there and cannot be used: ${reason}`),
  };
  const config = { provider, providerLibrary: '', deviceId: 0 };
  const { loaded: device, reason } = await loadOnDevice(config, log, (setting) => openDevice(setting));
  cleanup.defer(() => device.dispose());
  if (provider === 'auto') progress.succeed(`trains on ${device.name} (${reason})`);
  if (device.kind === 'cpu') return device;
  const refused = (what: string) =>
    new ServingError('config_invalid', `--provider ${provider} (${device.name}): ${what}`);
  if (frozen !== 'fp32') {
    const why = `devices would leave the widening of each matrix to the CPU, so they train through fp32 alone`;
    throw refused(`--frozen ${frozen}: ${why}: leave it out, or use --provider cpu`);
  }
  if (workers > 1) throw refused(`--workers ${workers} would share one device: leave it out`);
  return device;
}

/** Operators of whole numbers and shapes among those of our graphs: wherever they are computed, they cost nothing. */
const BOOKKEEPING: ReadonlySet<string> = new Set([
  ...['Add', 'Cast', 'Concat', 'ConstantOfShape', 'Div', 'Expand', 'Gather', 'Less', 'Mul', 'Range', 'Reshape'],
  ...['Shape', 'Slice', 'Squeeze', 'Sub', 'Unsqueeze', 'Where'],
]);

/** Says which operators the device lacks, and that the CPU computes them: for each, values cross over and back. */
export function sayPlacement({ kind, name }: Device, leftToCpu: ReadonlyMap<string, number>, progress: Progress): void {
  if (kind === 'cpu') return;
  const total = [...leftToCpu.values()].reduce((sum, count) => sum + count, 0);
  const heavy = [...leftToCpu].filter(([operator]) => !BOOKKEEPING.has(operator));
  const named = heavy.map(([operator, count]) => `${count} ${operator}`).join(', ');
  const said = `${name} leaves ${total} operators to the CPU`;
  if (heavy.length === 0) progress.succeed(`${said}, all of them arithmetic on shapes`);
  else progress.warn(`${said}, among them ${named}: each of these copies its values there and back`);
  progress.start('training');
}

/** The kind of the device decides the results; that of runs on the CPU stands nowhere. */
export const decisiveDevice = ({ kind }: Device) => (kind === 'cpu' ? {} : { device: kind });

/**
 * The encoder of an index on the device that the settings ask for. Before it is used on a GPU, it is compared there
 * with the CPU's: a device that computes wrong would fill an index with wrong vectors, which nobody would notice.
 */
import { type DeviceConfig, type DeviceLog, type DeviceReport, loadOnDevice } from '../../engine/choose-device.ts';
import { type DeviceSetting, openDevice } from '../../engine/device.ts';
import type { Bundle } from '../../model/bundle/bundle.ts';
import { ServingError } from '../../process/errors.ts';
import type { RetrieverName } from '../retriever-name.ts';
import { type ContextEncoder, loadContextEncoder } from './encode.ts';

interface EncoderConfig extends DeviceConfig {
  readonly threads: number;
  readonly retriever?: RetrieverName;
}

export interface DeviceEncoder extends ContextEncoder {
  readonly device: DeviceReport;
  /** Resolves with the reason when the device fails again and again; undefined on the CPU. */
  readonly lost: Promise<ServingError> | undefined;
  /** Frees encoder and device after the runs that are under way. */
  dispose(): Promise<void>;
}

/** One text of more than 32 tokens, no two of its lines alike, and a short one: such runs take different kernels. */
const TRIED = [
  {
    path: 'a.py',
    text: Array.from({ length: 12 }, (_, i) => `def f${7 * i}(a, b): return a[${i}] * b.x${i}\n`).join(''),
  },
  { path: 'b.py', text: 'x = 1' },
];

/**
 * Largest distance of a vector from the CPU's, as a share of its length. With tiny-coder on lavapipe, seen as NVIDIA's,
 * it was 4e-7 with weights of 32 bits and 3e-3 with 8 bits, where the CPU rounds activations and a GPU does not. With
 * the wrong FlashAttention of ONNX Runtime 1.30 it was 3.5e-2 and 3.7e-2.
 */
const LARGEST_DISTANCE = 0.01;

/**
 * Loads encoder and projector of a bundle, if it has them.
 * @throws ServingError as loadContextEncoder; config_invalid for CUDA; provider_unavailable for a device that is not
 *   there or computes wrong.
 */
export async function openContextEncoder(
  bundle: Bundle,
  config: EncoderConfig,
  log: DeviceLog,
): Promise<DeviceEncoder> {
  const { threads, retriever } = config;
  const options = { threads, retriever };
  // Nothing is computed for a bundle without an encoder.
  const asked: DeviceConfig = bundle.context ? config : { provider: 'cpu', providerLibrary: '', deviceId: 0 };
  const { loaded, reason } = await loadOnDevice(asked, log, (setting) => loadOn(setting, bundle, options));
  const { encoder, device } = loaded;
  return {
    ...encoder,
    device: { kind: device.kind, name: device.name, reason },
    lost: device.kind === 'cpu' ? undefined : device.health.lost,
    async dispose() {
      encoder.dispose();
      await device.dispose();
    },
  };
}

type LoadOptions = Pick<EncoderConfig, 'threads' | 'retriever'>;

/** Leaves nothing open when it fails. */
async function loadOn(setting: DeviceSetting, bundle: Bundle, options: LoadOptions) {
  if (bundle.context) assertKernelsEncode(setting.provider, `--provider ${setting.provider}`);
  const device = await openDevice(setting);
  try {
    // Whose kernels a plugin has is known only now.
    if (device.kind === 'plugin' && bundle.context) assertKernelsEncode(device.kernels, device.name);
    const encoder = await loadContextEncoder(bundle, { ...options, device });
    try {
      if (device.kind !== 'cpu') await assertEncodesRight(encoder, bundle, options, device.name);
      return { encoder, device };
    } catch (error) {
      encoder.dispose();
      throw error;
    }
  } catch (error) {
    await device.dispose();
    throw error;
  }
}

/**
 * CUDA's attention takes 16 bits only: the CPU would compute every layer's, and inputs and outputs would cross the bus.
 * @throws ServingError config_invalid
 */
function assertKernelsEncode(kernels: DeviceSetting['provider'], device: string): void {
  if (kernels !== 'cuda') return;
  throw new ServingError(
    'config_invalid',
    `${device} cannot encode: encoders compute in 32 bits, and CUDA computes attention in 16 bits only: use --provider webgpu or cpu`,
  );
}

/** @throws ServingError provider_unavailable, with the figure, the limit and the remedy. */
async function assertEncodesRight(
  encoder: ContextEncoder,
  bundle: Bundle,
  options: LoadOptions,
  device: string,
): Promise<void> {
  const onCpu = await loadContextEncoder(bundle, options);
  try {
    const [expected, found] = [await onCpu.encode(TRIED), await encoder.encode(TRIED)];
    for (const [i, { vector }] of expected.entries()) {
      const off = distance(vector, found[i]!.vector);
      if (off <= LARGEST_DISTANCE) continue; // a number that is not finite fails, too
      throw new ServingError(
        'provider_unavailable',
        `${device} computes wrong: the vector of a text is off the CPU's by ${off.toPrecision(2)} of its length, ` +
          `and at most ${LARGEST_DISTANCE} is right. Update its driver, choose another device, or use --provider ` +
          'cpu',
      );
    }
  } finally {
    onCpu.dispose();
  }
}

function distance(expected: Float32Array, found: Float32Array): number {
  let [square, off] = [0, 0];
  for (const [i, value] of expected.entries()) {
    square += value ** 2;
    off += (value - found[i]!) ** 2;
  }
  return Math.sqrt(off / square);
}

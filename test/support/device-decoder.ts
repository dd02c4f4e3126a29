/** The software GPU for the tests of a file in the test's own process, and decoders on it or on the CPU. */
import { afterAll, beforeAll, expect } from 'vitest';
import { type Accelerator, type Device, openDevice } from '../../services/lib/engine/device.ts';
import { DeviceKv, type KvUse } from '../../services/lib/engine/device-kv.ts';
import { CpuEngineKv, type EngineKv } from '../../services/lib/engine/engine-kv.ts';
import { kvLayoutOf } from '../../services/lib/engine/kv-layout.ts';
import { DecoderSession } from '../../services/lib/engine/session.ts';
import { KvPool } from '../../services/lib/kv/pool.ts';
import type { Bundle } from '../../services/lib/model/bundle/bundle.ts';
import { COMPILING_MS, useVulkan } from './vulkan.ts';

/**
 * Opens the software GPU before the tests of a file, and closes it after them, when nothing may be left in its memory.
 * It must be called while tests are collected.
 * @returns the device, for use within tests.
 */
export function softwareGpu(): () => Accelerator {
  let device: Accelerator | undefined;
  beforeAll(async () => {
    await useVulkan();
    device = (await openDevice({ provider: 'webgpu' })) as Accelerator;
  }, COMPILING_MS);
  afterAll(async () => {
    expect(device?.bytes).toBe(0);
    await device?.dispose();
  });
  return () => device!;
}

interface Wanted {
  readonly slots?: number;
  readonly capacity?: number;
  /** What the caches of a device are for. */
  readonly use?: KvUse;
  readonly graphCapture?: boolean;
}

export interface Decoder {
  readonly session: DecoderSession;
  readonly store: EngineKv;
  dispose(): Promise<void>;
}

/** A decoder of a bundle, with caches of its own in the type that it computes in. */
export async function decoderOn(device: Device, bundle: Bundle, wanted: Wanted = {}): Promise<Decoder> {
  const { slots = 3, capacity = 64, use = 'both', graphCapture } = wanted;
  const { vocab, hidden } = bundle.manifest.llm.spec;
  const layout = kvLayoutOf(bundle.manifest);
  const store: EngineKv =
    device.kind === 'cpu'
      ? new CpuEngineKv(layout, slots, capacity)
      : await DeviceKv.create(device, layout, slots, capacity, use);
  const shape = { vocabSize: vocab, hiddenSize: hidden };
  const options = { device, threads: 1, graphCapture };
  const session = await DecoderSession.load(bundle.llm, shape, new KvPool(store), options);
  const dispose = async () => {
    await session.dispose();
    await store.dispose();
  };
  return { session, store, dispose };
}

/**
 * Inputs of a run that a device records and replays: they must lie in its memory and stay where they are. Each has a
 * twin in the host's memory, from which it is filled again before a run.
 *
 * Three inputs of a step change: ids, lengths, and the longest length. They are not packed into one tensor: they are
 * inputs of the graph by themselves, with types of their own, so that packing them would take nodes that unpack them, a
 * kernel more for each step. The copies of a step go down in one call as it is.
 */
import type { Accelerator, DeviceTensor } from './device.ts';
import type { Binding, OrtValue } from './ort.ts';

export class DeviceInputs {
  readonly #device: Accelerator;
  /** Twins whose content changes from run to run, and their tensors in the same order. */
  readonly #changing: readonly OrtValue[];
  readonly #tensors: readonly DeviceTensor[];
  /** Tensors whose content stays. */
  readonly #constant: readonly DeviceTensor[];

  private constructor(
    device: Accelerator,
    changing: readonly OrtValue[],
    tensors: readonly DeviceTensor[],
    constant: readonly DeviceTensor[],
  ) {
    this.#device = device;
    this.#changing = changing;
    this.#tensors = tensors;
    this.#constant = constant;
  }

  /**
   * Binds tensors of the device in place of values of the host.
   * @param constant inputs by name whose content is what it is now.
   * @throws ServingError out_of_memory, runtime_failed; then nothing stays allocated.
   */
  static async bind(
    device: Accelerator,
    binding: Binding,
    constant: Readonly<Record<string, OrtValue>>,
    changing: Readonly<Record<string, OrtValue>>,
  ): Promise<DeviceInputs> {
    const made: DeviceTensor[] = [];
    const place = async (inputs: Readonly<Record<string, OrtValue>>) => {
      const tensors: DeviceTensor[] = [];
      for (const [name, { tensor }] of Object.entries(inputs)) {
        const onDevice = await device.tensor(tensor.type, tensor.dims);
        made.push(onDevice);
        tensors.push(onDevice);
        binding.input(name, onDevice);
      }
      return tensors;
    };
    try {
      const kept = await place(constant);
      const filled = Object.values(constant).flatMap((value, i) =>
        value.tensor.data.length > 0 ? [{ value, at: kept[i]! }] : [],
      );
      await device.copy(
        filled.map(({ value }) => value),
        filled.map(({ at }) => at),
      );
      return new DeviceInputs(device, Object.values(changing), await place(changing), kept);
    } catch (error) {
      for (const tensor of made) tensor.dispose();
      throw error;
    }
  }

  /** Fills the changing inputs with what their twins hold now. */
  refill(): Promise<void> {
    return this.#device.copy(this.#changing, this.#tensors);
  }

  dispose(): void {
    for (const tensor of [...this.#tensors, ...this.#constant]) tensor.dispose();
  }
}

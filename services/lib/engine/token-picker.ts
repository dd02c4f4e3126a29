/**
 * Greedy choice on a device: the decoder leaves its logits in the device's memory, and only the ids of the likeliest
 * tokens are fetched. Logprobs, penalties, biases and random draws need the logits themselves: {@link takesLikeliest}
 * says who can do without.
 */
import { buildGreedy } from '../model/graph/greedy.ts';
import type { Sampling } from '../request/next-token.ts';
import type { Accelerator, DeviceTensor } from './device.ts';
import { DeviceInputs } from './device-inputs.ts';
import { type Binding, OrtSession, OrtValue } from './ort.ts';

/** The token of a row that has none, because its largest logit is not a finite number. */
export const NO_CHOICE = -1;

/**
 * Whether the token at a place of the output is simply the one with the largest logit.
 * @param position place of the token in the output, from 0, as for sample().
 */
export function takesLikeliest(sampling: Sampling, position: number): boolean {
  return (
    sampling.temperature === 0 &&
    sampling.logprobs < 0 &&
    sampling.frequencyPenalty === 0 &&
    sampling.presencePenalty === 0 &&
    sampling.logitBias.size === 0 &&
    (position >= sampling.minTokens || sampling.stopTokenIds.length === 0)
  );
}

/** The parts of a choice among the first n rows. */
interface Rows {
  readonly logits: DeviceTensor;
  readonly binding: Binding;
}

export class TokenPicker {
  readonly #session: OrtSession;
  /** [rows, vocab] */
  readonly #logits: DeviceTensor;
  readonly #vocab: number;
  /** The tokens of the last choice, or NO_CHOICE. */
  readonly tokens: Int32Array;
  readonly #device: Accelerator;
  /** [rows, 1] each, on the host. */
  readonly #tokens: Float32Array;
  readonly #largest: Float32Array;
  /** By number of rows. */
  readonly #rows = new Map<number, Rows>();
  readonly #bound: OrtValue[] = [];

  private constructor(device: Accelerator, session: OrtSession, logits: DeviceTensor, rows: number, vocab: number) {
    this.#device = device;
    this.tokens = new Int32Array(rows);
    this.#session = session;
    this.#logits = logits;
    this.#vocab = vocab;
    this.#tokens = new Float32Array(new ArrayBuffer(rows * 4));
    this.#largest = new Float32Array(new ArrayBuffer(rows * 4));
  }

  /**
   * Takes rows × vocab × 4 bytes of the device's memory. Its kernels are compiled when this resolves.
   * @throws ServingError runtime_failed, out_of_memory.
   */
  static async open(device: Accelerator, rows: number, vocab: number): Promise<TokenPicker> {
    const logits = await device.tensor('float32', [rows, vocab]);
    const session = await OrtSession.build(buildGreedy(vocab), { device, threads: 1 }).catch((error) => {
      logits.dispose();
      throw error;
    });
    const picker = new TokenPicker(device, session, logits, rows, vocab);
    try {
      await picker.pick(1);
      return picker;
    } catch (error) {
      picker.dispose();
      throw error;
    }
  }

  /** Where the decoder puts the logits of n rows, [n, vocab]. */
  logits(n: number): DeviceTensor {
    return this.#rowsOf(n).logits;
  }

  /**
   * Chooses among the logits that lie in {@link logits}, and puts the choice into {@link tokens}.
   * @throws ServingError runtime_failed
   */
  async pick(n: number): Promise<void> {
    await this.#rowsOf(n).binding.run();
    for (let row = 0; row < n; row++) {
      const token = this.#tokens[row]!;
      this.tokens[row] = token < this.#vocab && Number.isFinite(this.#largest[row]) ? token : NO_CHOICE;
    }
  }

  /** Fetches the logits that lie in {@link logits}. */
  fetch(n: number, to: OrtValue): Promise<void> {
    return this.#device.copy([this.#rowsOf(n).logits], [to]);
  }

  /**
   * Makes the decoder record its runs of n rows: inputs and logits lie on the device.
   * @param graph the number of the recording.
   * @param constant inputs whose content is what it is now.
   * @param changing inputs that are to be filled again before each run.
   */
  async record(
    decoder: Binding,
    graph: number,
    n: number,
    constant: Readonly<Record<string, OrtValue>>,
    changing: Readonly<Record<string, OrtValue>>,
  ): Promise<DeviceInputs> {
    const inputs = await DeviceInputs.bind(this.#device, decoder, constant, changing);
    decoder.output('logits', this.logits(n)).capture(graph);
    return inputs;
  }

  #rowsOf(n: number): Rows {
    let rows = this.#rows.get(n);
    if (rows === undefined) {
      const logits = this.#logits.head([n, this.#vocab]);
      const onHost = (data: Float32Array) => {
        const value = new OrtValue({ type: 'float32', dims: [n, 1], data });
        this.#bound.push(value);
        return value;
      };
      const binding = this.#session
        .bind()
        .input('logits', logits)
        .output('tokens', onHost(this.#tokens))
        .output('largest', onHost(this.#largest));
      rows = { logits, binding };
      this.#rows.set(n, rows);
    }
    return rows;
  }

  /** Call it when nothing is bound to the logits any more. */
  dispose(): void {
    for (const { binding, logits } of this.#rows.values()) {
      binding.dispose();
      logits.dispose();
    }
    for (const value of this.#bound) value.dispose();
    this.#logits.dispose();
    this.#session.dispose();
  }
}

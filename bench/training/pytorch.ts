/** PyTorch's side of `bench training`: pytorch-step.py in the user's own Python, one line of JSON for each pass. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import type { DecoderSpec } from '../../services/lib/model/checkpoint/spec.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { transformersConfig } from '../harness/transformers-config.ts';
import type { TrainingBenchOptions } from './command.ts';

const SCRIPT = join(PACKAGE_ROOT, 'bench', 'training', 'pytorch-step.py');
/** Within this, a model is made, or one pass has ended: 7B in 32-bit floats takes some minutes a pass. */
const MOST_MS = 30 * 60_000;
/** What is kept of what Python says on stderr, for the error message. */
const KEPT_CHARACTERS = 2000;

const answerSchema = z.object({ peakBytes: z.number().positive(), version: z.string() });
const passSchema = answerSchema.extend({ seconds: z.number().positive(), cpuSeconds: z.number().positive() });

export class PytorchPasses {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  readonly #python: string;
  #said = '';
  #failure: Error | undefined;

  private constructor(python: string, words: readonly string[]) {
    this.#python = python;
    this.#child = spawn(python, [SCRIPT, ...words]);
    this.#child.on('error', (error) => {
      this.#failure = error;
    });
    this.#child.stderr.on('data', (text: Buffer) => {
      this.#said = (this.#said + text).slice(-KEPT_CHARACTERS);
    });
    this.#child.stdin.on('error', () => {}); // it has ended: the next answer says so
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  /**
   * Starts Python with a random model of the shape. Nothing is left of it where this throws.
   * @throws ServingError config_invalid where Python does not start, or lacks torch or transformers.
   */
  static async open(
    python: string,
    spec: DecoderSpec,
    { prompt, target, soft, threads }: Pick<TrainingBenchOptions, 'target' | 'soft' | 'threads'> & { prompt: number },
  ): Promise<PytorchPasses> {
    const numbers = [prompt, target, soft, threads].map(String);
    const passes = new PytorchPasses(python, [JSON.stringify(transformersConfig(spec)), ...numbers]);
    try {
      await passes.#answer(answerSchema);
      return passes;
    } catch (error) {
      await passes.stop();
      throw error;
    }
  }

  /** One pass. @throws as {@link open}. */
  pass(): Promise<z.infer<typeof passSchema>> {
    this.#child.stdin.write('\n');
    return this.#answer(passSchema);
  }

  async #answer<T>(schema: z.ZodType<T>): Promise<T> {
    const late = setTimeout(() => this.#child.kill('SIGKILL'), MOST_MS);
    const { value, done } = await this.#lines.next().finally(() => clearTimeout(late));
    if (!done) {
      const parsed = schema.safeParse(parseJson(value));
      if (parsed.success) return parsed.data;
      this.#said += `\nit wrote ${JSON.stringify(value)}`;
    }
    const why = this.#failure?.message ?? (this.#said.trim().split('\n').at(-1) || 'it ended without a word');
    const remedy = 'name a Python that has the packages torch and transformers';
    throw new ServingError('config_invalid', `--pytorch ${this.#python}: ${why}: ${remedy}`);
  }

  /** @returns when the process has ended */
  async stop(): Promise<void> {
    const { pid, exitCode, signalCode } = this.#child;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await ended;
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

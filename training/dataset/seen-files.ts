/**
 * The files that samples have been made of. A file that is equal to one of them is left out, and one of the training
 * split also where it is nearly equal to one of the validation split, whose repositories come first.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { atPath } from '../../services/lib/process/os-errors.ts';
import type { Split } from '../data/manifest.ts';
import { writeWhole } from '../run/files.ts';
import type { FileReason } from './file-filter.ts';
import { NearCopies, SIGNATURE_VALUES } from './minhash.ts';
import { hash52 } from './random.ts';

export class SeenFiles {
  /** Digests of 52 bits: with ten million files one in a hundred data sets loses a file to a collision. */
  readonly #digests = new Set<number>();
  readonly #validation: NearCopies;
  /** What has been added since the last checkpoint. */
  #newDigests: number[] = [];
  #newSignatures: Uint32Array[] = [];

  constructor(seed: number) {
    this.#validation = new NearCopies(seed);
  }

  reasonAgainst(split: Split, text: string): FileReason | undefined {
    if (this.#digests.has(hash52(text))) return 'copy';
    if (split === 'valid') return undefined;
    const signature = this.#validation.signatureOf(text);
    return signature && this.#validation.has(signature) ? 'near_copy' : undefined;
  }

  add(split: Split, files: readonly { readonly text: string }[]): void {
    for (const { text } of files) {
      const digest = hash52(text);
      this.#digests.add(digest);
      this.#newDigests.push(digest);
      const signature = split === 'valid' ? this.#validation.signatureOf(text) : undefined;
      if (!signature) continue;
      this.#validation.add(signature);
      this.#newSignatures.push(signature);
    }
  }

  /** Writes what has been added since the last time. @param number of the checkpoint */
  async save(dir: string, number: number): Promise<void> {
    const [digests, signatures] = filesOf(dir, number);
    await writeWhole(digests, Buffer.from(Float64Array.from(this.#newDigests).buffer));
    const values = new Uint32Array(this.#newSignatures.length * SIGNATURE_VALUES);
    for (const [i, signature] of this.#newSignatures.entries()) values.set(signature, i * SIGNATURE_VALUES);
    await writeWhole(signatures, Buffer.from(values.buffer));
    this.#newDigests = [];
    this.#newSignatures = [];
  }

  /** Reads what a run that was stopped had saved with one checkpoint. */
  async restore(dir: string, number: number): Promise<void> {
    const [digests, signatures] = await Promise.all(
      filesOf(dir, number).map((path) => atPath(path, async () => new Uint8Array(await readFile(path)).buffer)),
    );
    for (const digest of new Float64Array(digests!)) this.#digests.add(digest);
    const values = new Uint32Array(signatures!);
    for (let at = 0; at < values.length; at += SIGNATURE_VALUES) {
      this.#validation.add(values.slice(at, at + SIGNATURE_VALUES));
    }
  }
}

function filesOf(dir: string, number: number): readonly [string, string] {
  const name = String(number).padStart(6, '0');
  return [join(dir, `${name}.digests`), join(dir, `${name}.signatures`)];
}

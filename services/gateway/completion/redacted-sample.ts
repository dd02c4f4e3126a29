/**
 * A sample of a completion for the log, for operators who ask for it. It shows the shape of a prompt (lines, brackets,
 * the cursor) and nothing of its content: every letter and digit is blotted out.
 */
import type { CompletionRequest } from '../request.ts';

/** Characters that are kept of each part: the end of the text before the cursor, the beginning of the others. */
const KEPT = 400;

/** `return x1 + "é"` becomes `xxxxxx x9 + "x"`: letters, digits and all that is not ASCII lose their meaning. */
function redacted(text: string): string {
  return text
    .replace(/[\p{L}\p{M}]/gu, (letter) => (/[\p{Lu}\p{Lt}]/u.test(letter) ? 'X' : 'x'))
    .replace(/\p{N}/gu, '9')
    .replace(/[^\x20-\x7e\n\t]/gu, '?');
}

export class RedactedSample {
  readonly #prompt: string;
  readonly #suffix: string | undefined;
  #text = '';

  constructor({ prompts: [prompt = ''], suffix }: CompletionRequest) {
    this.#prompt = typeof prompt === 'string' ? redacted(prompt.slice(-KEPT)) : `${prompt.length} token ids`;
    this.#suffix = suffix === undefined ? undefined : redacted(suffix.slice(0, KEPT));
  }

  /** Adds text of the first choice, as it goes out. */
  add(text: string): void {
    if (this.#text.length < KEPT) this.#text += redacted(text.slice(0, KEPT));
  }

  toJSON() {
    return { prompt: this.#prompt, suffix: this.#suffix, text: this.#text };
  }
}

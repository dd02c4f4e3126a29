/**
 * Prompts that clients have put together themselves: `<|fim_prefix|>LEFT<|fim_suffix|>RIGHT<|fim_middle|>`, in a form
 * of the served model's own family. They are taken apart, so that retrieval sees the cursor, a cut leaves out what is
 * far from it, and the gateway's own order applies.
 */
import type { PromptFormat } from './prompt-format.ts';
import type { Tokenizer } from './tokenizer.ts';

/** A client's prompt taken apart. */
export interface ClientFrame {
  /** The text before the frame, in which names are tokens: files that the client has put there as context. */
  readonly head: string;
  /** The text before the cursor. */
  readonly left: string;
  /** The text after the cursor. */
  readonly right: string;
}

/**
 * Takes a prompt apart, in steps. undefined if it does not have a form of the model's family, or if other special
 * tokens stand within the frame: then it is a prompt as it is.
 */
export function* clientFrame(
  tokenizer: Pick<Tokenizer, 'addedTokens' | 'isSpecial'>,
  { frame, forms }: Pick<PromptFormat, 'frame' | 'forms'>,
  prompt: string,
): Generator<void, ClientFrame | undefined> {
  if (frame === undefined) return undefined;
  const found: { id: number; start: number; end: number }[] = [];
  for (const token of tokenizer.addedTokens(prompt)) {
    if (token === undefined) {
      yield;
      continue;
    }
    const isFrame = frame.includes(token.id);
    if (!isFrame && (found.length === 0 || !tokenizer.isSpecial(token.id))) continue;
    if (!isFrame || found.length === frame.length) return undefined;
    found.push(token);
  }
  if (found.length < frame.length) return undefined;
  const head = prompt.slice(0, found[0]!.start);
  const between = found.map(({ end }, i) => prompt.slice(end, found[i + 1]?.start));
  for (const form of Object.values(forms)) {
    const sides = sidesIn(
      form,
      found.map(({ id }) => id),
      between,
    );
    if (sides) return { head, ...sides };
  }
  return undefined;
}

/**
 * The two sides of a prompt that has a form; undefined if it does not have it.
 * @param ids the frame's tokens in the prompt's order.
 * @param between the text after each of them.
 */
function sidesIn(
  form: NonNullable<PromptFormat['forms']['psm']>,
  ids: readonly number[],
  between: readonly string[],
): Pick<ClientFrame, 'left' | 'right'> | undefined {
  const sides = { left: '', right: '' };
  let token = -1;
  let isTaken = true;
  for (const part of form) {
    if (typeof part !== 'number') {
      sides[part] = between[token] ?? '';
      isTaken = true;
      continue;
    }
    // A text where the form has none.
    if (!isTaken && between[token] !== '') return undefined;
    if (ids[++token] !== part) return undefined;
    isTaken = false;
  }
  return isTaken || between[token] === '' ? sides : undefined;
}

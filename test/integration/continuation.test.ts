/**
 * Output that other workers began is continued as if they had gone on: draws, penalties and minimum length count on.
 */
import { expect, test } from 'vitest';
import { GREEDY, type Sampling } from '../../services/lib/request/next-token.ts';
import { samplingMessage } from '../../services/lib/rpc/messages.ts';
import { begin, decode, decodeRequest, prefillRequest, startDecode, startPrefill } from '../support/workers.ts';

const PROMPT = [3, 1, 4, 1, 5];
const LENGTH = 12;

test('output is continued identically from any position, greedy or random, with penalties and a minimum length', async () => {
  const { client: prefill } = await startPrefill();
  const { client: decoder } = await startDecode();

  /** The tokens that follow `prior`, up to LENGTH tokens in all. */
  async function rest(sampling: Sampling, priorOutputIds: readonly number[]): Promise<number[]> {
    const message = samplingMessage({ ...sampling, priorOutputIds });
    const staged = await begin(prefill, prefillRequest([...PROMPT, ...priorOutputIds], { choices: [message] }));
    const request = decodeRequest(staged.kv, LENGTH - priorOutputIds.length, { sampling: message });
    const { tokens } = await decode(decoder, request);
    const output = [...(await staged.first()), ...tokens];
    await staged.released();
    return output;
  }

  const random: Sampling = { ...GREEDY, temperature: 1, seed: 3, frequencyPenalty: 2, presencePenalty: 1 };
  const whole = await rest(random, []);
  expect(whole).not.toEqual(await rest({ ...random, seed: 2 }, []));
  expect(whole).not.toEqual(await rest({ ...random, frequencyPenalty: 0 }, []));
  const stopped: Sampling = { ...random, stopTokenIds: [whole[2]!], minTokens: 8 };
  for (const sampling of [GREEDY, random, stopped]) {
    const output = await rest(sampling, []);
    for (let position = 1; position < output.length; position++) {
      const tail = await rest(sampling, output.slice(0, position));
      expect(tail, `from position ${position}`).toEqual(output.slice(position));
    }
  }
});

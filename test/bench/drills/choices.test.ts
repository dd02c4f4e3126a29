import { describe, expect, test } from 'vitest';
import { type ChoicesReference, sendChoices } from '../../../bench/drills/choices.ts';
import type { StreamRecord } from '../../../bench/drills/streams.ts';
import { BODY } from '../../support/drill-scene.ts';
import { gateway, json, refuse } from '../../support/fake-http.ts';

describe('several choices', () => {
  const expected: ChoicesReference = {
    body: { ...BODY, n: 2 },
    tokenIds: [
      [1, 2],
      [5, 6],
    ],
    withoutContext: [
      [3, 4],
      [7, 8],
    ],
  };
  const choice = (index: number, ...token_ids: number[]) => ({ index, token_ids });
  const usage = { prompt_tokens: 1, completion_tokens: 4 };

  test.each<[string, object, Partial<StreamRecord>]>([
    ['that are right', { choices: [choice(1, 5, 6), choice(0, 1, 2)], usage }, { outcome: 'ok', lost: 0, doubled: 0 }],
    [
      'that are right without context',
      { choices: [choice(0, 3, 4), choice(1, 7, 8)], usage, rag: { degraded: 'store' } },
      { outcome: 'ok', lost: 0, doubled: 0, degraded: 'store' },
    ],
    [
      'that are swapped',
      { choices: [choice(0, 5, 6), choice(1, 1, 2)], usage },
      { outcome: 'ok', lost: 4, doubled: 4 },
    ],
    [
      'of which one is missing',
      { choices: [choice(0, 1, 2)], usage: { ...usage, completion_tokens: 2 } },
      { lost: 2, doubled: 0 },
    ],
    [
      'that usage counts wrongly',
      { choices: [choice(0, 1, 2), choice(1, 5, 6)], usage: { ...usage, completion_tokens: 2 } },
      { outcome: 'failed', code: 'wrong_usage' },
    ],
  ])('an answer with choices %s is judged by its tokens and its usage', async (_, answer, record) => {
    const url = await gateway((_, __, response) => json(response, answer));
    expect(await sendChoices({ url }, expected, 0)).toMatchObject(record);
  });

  test('a refused request for choices has failed with the code of the refusal', async () => {
    const url = await gateway((_, __, response) => refuse(response, 'worker_lost'));
    expect(await sendChoices({ url }, expected, 0)).toMatchObject({ outcome: 'failed', code: 'worker_lost' });
  });
});

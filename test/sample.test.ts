/** The sample that README.md, `llavacode up` and the demo show is one cursor of the repository that ships. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { countByModes, isRight, sampleCursors } from '../services/demo-search.ts';
import { PACKAGE_ROOT, SAMPLE_REPOSITORY } from '../services/lib/process/package-root.ts';
import { SAMPLE, SAMPLE_BODY, SAMPLE_REPO, SEARCHED } from '../services/sample.ts';

describe('the sample', () => {
  test('stands in its file as it is shown', async () => {
    const source = await readFile(join(SAMPLE_REPOSITORY, SAMPLE.path), 'utf8');
    expect(source).toContain(`\n${SAMPLE.before}${SAMPLE.rest}\n`);
  });

  test('is one of the cursors that the search completes at, and their number is the one that the demo prints', async () => {
    const cursors = await sampleCursors();
    const same = cursors.filter(({ path, before, rest }) => {
      return path === SAMPLE.path && before === SAMPLE.before && rest === SAMPLE.rest;
    });
    expect(same).toHaveLength(1);
    expect(cursors).toHaveLength(SEARCHED.cursors);
  });

  test('is the request of the curl in README.md', async () => {
    const readme = await readFile(join(PACKAGE_ROOT, 'README.md'), 'utf8');
    const body = /^curl -N http:\/\/127\.0\.0\.1:8000\/v1\/completions .* -d '(\{[\s\S]*?\n\})'$/m.exec(readme)?.[1];
    expect(JSON.parse(body ?? '')).toEqual({
      ...SAMPLE_BODY,
      stream: true,
      rag: { repo: SAMPLE_REPO, path: SAMPLE.path },
    });
    expect(readme).toContain(`\`${SAMPLE.rest.trim()}\``);
  });

  test('has the counts in README.md that the demo prints', async () => {
    const readme = (await readFile(join(PACKAGE_ROOT, 'README.md'), 'utf8')).replaceAll('\n', ' ');
    const { cursors, right, gained, lost } = SEARCHED;
    expect(readme).toContain(
      `of ${cursors} cursors it completes the line without context at ${right.off}, with text at ${right.text}, ` +
        `compressed at ${right.compressed}; text gains ${gained.text} and loses ${lost.text}, compressed context gains ` +
        `${gained.compressed} and loses ${lost.compressed}`,
    );
  });
});

describe('the search', () => {
  test('places cursors where a line begins and behind brackets, dots, assignments and returns', async () => {
    const cursors = (await sampleCursors()).filter(({ path }) => path === 'shop/checkout.py');
    const ofLine = cursors.filter(({ before, rest }) => {
      return `${before.split('\n').at(-1)}${rest}` === '        return self._advance(order_id, OrderStatus.SHIPPED)';
    });
    expect(ofLine.map(({ rest }) => rest)).toEqual([
      '        return self._advance(order_id, OrderStatus.SHIPPED)',
      'self._advance(order_id, OrderStatus.SHIPPED)',
      '_advance(order_id, OrderStatus.SHIPPED)',
      'order_id, OrderStatus.SHIPPED)',
      'SHIPPED)',
    ]);
    for (const { before } of cursors) expect(before.split('\n').length).toBeLessThanOrEqual(9);
  });

  test('counts cursors by the modes whose answer is the rest of the line', () => {
    const cursor = { path: 'a.py', line: 1, before: '', rest: 'x = 1' };
    const found = [
      { ...cursor, answers: { off: 'x = 1', text: 'y', compressed: 'x = 1' } },
      { ...cursor, answers: { off: 'x = 12', text: 'x =', compressed: '' } },
      { ...cursor, answers: { off: '', text: 'x = 1 ', compressed: '' } },
    ];
    expect(countByModes(found)).toEqual({ 'off+compressed': 1, none: 1, text: 1 });
    expect(isRight('x = 1 ', 'x = 1')).toBe(true);
  });
});

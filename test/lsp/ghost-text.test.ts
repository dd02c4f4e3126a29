import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GhostText } from '../../services/lsp/ghost-text.ts';

const URI = 'file:///a.py';

function ghostText() {
  const told: string[] = [];
  const ghosts = new GhostText((id, outcome) => void told.push(`${outcome} ${id}`));
  const show = (id: string, before: string, text: string, behind = '') =>
    ghosts.show({ id, uri: URI, before, behind, text });
  return { ghosts, told, show };
}

describe('typed-through', () => {
  it('the rest is given exactly while what was typed is the beginning of what is shown', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', '\n'), maxLength: 6 });
    fc.assert(
      fc.property(letters, letters, letters, letters, letters, (before, text, behind, typed, laterBehind) => {
        fc.pre(text !== '');
        const { ghosts, show } = ghostText();
        show('1', before, text, behind);
        const rest = ghosts.rest(URI, before + typed, laterBehind);
        const fits = laterBehind === behind && typed !== text && text.startsWith(typed);
        expect(rest?.text).toBe(fits ? text.slice(typed.length) : undefined);
      }),
      { numRuns: 5_000, examples: [['a', 'bab', 'b', 'ba', 'b']] },
    );
  });

  it('another document, and a text before the place at which it was shown, have no rest', () => {
    const { ghosts, show } = ghostText();
    show('1', 'ab', 'c');
    expect(ghosts.rest('file:///b.py', 'ab', '')).toBeUndefined();
    expect(ghosts.rest(URI, 'a', '')).toBeUndefined();
    expect(ghosts.rest(URI, 'ab', '')).toEqual({ id: '1', text: 'c' });
  });

  it('the newest completions are kept, and no more than eight', () => {
    const { ghosts, show } = ghostText();
    for (let i = 0; i < 9; i++) show(String(i), 'x'.repeat(i), 'y');
    expect(ghosts.rest(URI, '', '')).toBeUndefined();
    expect(ghosts.rest(URI, 'x', '')).toEqual({ id: '1', text: 'y' });
  });
});

describe('what became of a completion', () => {
  it('a completion is dismissed by the next one, and taken where the document holds all of it', () => {
    const { ghosts, told, show } = ghostText();
    show('1', 'a', 'bc', 'd');
    show('2', 'a', 'xy', 'd');
    ghosts.changed(URI, 'axd');
    ghosts.changed(URI, 'axyd');
    ghosts.dismiss();
    expect(told).toEqual(['view 1', 'dismiss 1', 'view 2', 'select 2']);
  });

  it('neither another text of the same length nor another document takes a completion', () => {
    const { ghosts, told, show } = ghostText();
    show('1', 'a', 'bc', 'd');
    for (const text of ['abxd', 'xbcd', 'abcx', 'abcdd']) ghosts.changed(URI, text);
    ghosts.changed('file:///b.py', 'abcd');
    ghosts.dismiss('file:///b.py');
    expect(told).toEqual(['view 1']);
  });

  it('one outcome of a completion is told', () => {
    const { ghosts, told, show } = ghostText();
    show('1', '', 'a');
    ghosts.selected('1');
    ghosts.selected('1');
    ghosts.changed(URI, 'a');
    ghosts.dismiss(URI);
    ghosts.selected('unknown');
    expect(told).toEqual(['view 1', 'select 1']);
  });
});

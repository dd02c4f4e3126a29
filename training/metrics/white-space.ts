/** White space as Python has it, because published metrics are Python programs. JavaScript's differs. */

const SPACE = '[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]';
const ENDS = new RegExp(`^${SPACE}+|${SPACE}+$`, 'g');
const RIGHT_END = new RegExp(`${SPACE}+$`);
const SPACES = new RegExp(`${SPACE}+`);

/** As `str.strip`. */
export const strip = (text: string): string => text.replace(ENDS, '');

/** As `str.rstrip`. */
export const stripRight = (text: string): string => text.replace(RIGHT_END, '');

/** As `str.split` without arguments: the words between white space. */
export const wordsOf = (text: string): string[] => text.split(SPACES).filter((word) => word !== '');

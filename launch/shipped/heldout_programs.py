r"""The programs of the held-out tasks, written by hand: one a line, of which `heldout_tasks.py` makes tasks.

A line has the difficulty, the parameters, the body, what the function does, and four inputs, separated by ` | `. A body
that is an expression is returned; in one of several lines, `\n` ends a line. Deduction asks for the first input's
output, abduction for an input that gives the second input's output, induction for the program from the first two pairs.

Difficulty 1: one operation; 2: one idiom of Python; 3: two steps, or a condition; 4: a loop, or three steps. All are
small on purpose: a model of 135M parameters must be able to solve some, or a curve over a run shows nothing.
"""

from __future__ import annotations

from typing import NamedTuple

PROGRAMS = r"""
1 | x | x + 1 | adds 1 | 3 | 9 | 20 | -1
1 | x | x + 2 | adds 2 | 6 | 11 | 30 | 0
1 | x | x + 5 | adds 5 | 4 | 12 | 50 | -5
1 | x | x + 10 | adds 10 | 2 | 15 | 40 | 0
1 | x | x + 100 | adds 100 | 7 | 20 | 300 | 1
1 | x | x - 1 | takes 1 away | 8 | 13 | 1 | 30
1 | x | x - 3 | takes 3 away | 10 | 5 | 3 | 23
1 | x | x - 10 | takes 10 away | 15 | 40 | 10 | 3
1 | x | x * 2 | doubles | 4 | 7 | 11 | 0
1 | x | x * 4 | multiplies by 4 | 3 | 8 | 10 | 1
1 | x | x * 6 | multiplies by 6 | 2 | 7 | 10 | 0
1 | x | x * 10 | multiplies by 10 | 3 | 6 | 12 | 1
1 | x | x * 100 | multiplies by 100 | 5 | 2 | 9 | 0
1 | x | -x | changes the sign | 6 | 2 | -9 | 0
1 | x | x * x | squares | 3 | 9 | 10 | 1
1 | x | 10 - x | takes the number away from 10 | 4 | 1 | 10 | 7
1 | x | 20 - x | takes the number away from 20 | 5 | 8 | 20 | 0
1 | x | x / 2 | halves | 8 | 10 | 6 | 20
1 | x | x > 0 | says whether a number is positive | 4 | -2 | 10 | 0
1 | x | x > 5 | says whether a number is above 5 | 9 | 2 | 6 | 1
1 | x | [x] | puts its argument into a list | 4 | 'a' | 0 | -2
1 | x | (x, x) | makes a pair of its argument and itself | 3 | 'b' | 0 | -1
1 | x | [x, x] | makes a list of its argument, twice | 5 | 'c' | 0 | 7
1 | x | [x, 0] | makes a list of its argument and 0 | 3 | 8 | 'a' | -1
1 | x | (x, 1) | makes a pair of its argument and 1 | 4 | 9 | 'b' | 0
1 | x | {'x': x} | puts its argument under the key x | 2 | 8 | 'a' | 0
1 | a, b | a + b | adds two numbers | 2, 3 | 10, 5 | 7, 7 | 0, 4
1 | a, b | a - b | subtracts | 9, 4 | 6, 1 | 12, 12 | 3, 5
1 | a, b | a * b | multiplies two numbers | 3, 4 | 2, 8 | 5, 0 | 6, 6
1 | a, b | b - a | takes the first number away from the second | 2, 9 | 5, 6 | 1, 10 | 4, 4
1 | a, b | a | gives back its first argument | 1, 2 | 'x', 'y' | 0, 9 | 7, 7
1 | a, b | b | gives back its second argument | 1, 2 | 'x', 'y' | 0, 9 | 5, 7
1 | a, b | a < b | says whether the first number is smaller | 1, 4 | 5, 2 | 3, 3 | 0, 6
1 | a, b | a == b | says whether both are equal | 1, 1 | 2, 3 | 'a', 'a' | 0, 5
1 | a, b | [a, b] | makes a list of its arguments | 1, 2 | 'a', 'b' | 0, 0 | 7, 3
1 | a, b, c | a + b + c | adds three numbers | 1, 2, 3 | 5, 5, 1 | 10, 0, 4 | 2, 2, 2
1 | a, b, c | b | gives back its second argument | 4, 5, 6 | 'x', 'y', 'z' | 0, 1, 0 | 7, 3, 9
1 | s | s + '!' | adds an exclamation mark | 'hi' | 'go' | 'wow' | ''
1 | s | s + '?' | adds a question mark | 'who' | 'why' | 'me' | ''
1 | s | s + 's' | adds an s | 'cat' | 'dog' | 'car' | 'tree'
1 | s | s + 'ing' | adds ing | 'go' | 'jump' | 'eat' | 'sing'
1 | s | s + s | says it twice | 'ab' | 'no' | 'x' | 'cat'
1 | s | 'a' + s | puts an a in front | 'bc' | 't' | 'way' | ''
1 | s | 'my ' + s | puts my in front | 'dog' | 'hat' | 'cup' | ''
1 | s | '(' + s + ')' | puts brackets around a text | 'ab' | 'x' | 'sun' | ''
1 | s | len(s) | counts the characters | 'cat' | 'house' | 'a' | ''
1 | s | s.upper() | makes capital letters | 'dog' | 'tree' | 'a b' | 'x'
1 | s | s.lower() | makes small letters | 'DOG' | 'Sun' | 'A B' | 'X'
1 | a | a[0] | gives the first item | [7, 8, 9] | [3, 1] | [5] | [0, 4, 4]
1 | a | a + [1] | adds 1 at the end of a list | [3, 2] | [6] | [] | [0, 0]
1 | a | [0] + a | puts 0 at the start of a list | [4, 5] | [7] | [] | [0, 1]
2 | x | x % 4 | gives the remainder by 4 | 7 | 8 | 10 | 13
2 | x | x % 3 | gives the remainder by 3 | 5 | 7 | 9 | 2
2 | x | x % 10 | gives the last digit | 27 | 43 | 10 | 98
2 | x | x // 2 | halves and rounds down | 9 | 6 | 1 | 15
2 | x | x // 10 | leaves out the last digit | 45 | 120 | 7 | 99
2 | x | x ** 2 + 1 | squares and adds 1 | 3 | 2 | 5 | 0
2 | x | 2 ** x | gives a power of 2 | 3 | 4 | 0 | 6
2 | x | x % 2 == 0 | says whether a number is even | 7 | 4 | 0 | 11
2 | x | x % 2 == 1 | says whether a number is odd | 5 | 8 | 13 | 20
2 | x | abs(x) | takes away the sign | -4 | -7 | 0 | -10
2 | x | str(x) | writes a number as text | 12 | 7 | -3 | 100
2 | x | float(x) | makes a number with a decimal point | 2 | 7 | 0 | 10
2 | x | bool(x) | says whether something is not nothing | 5 | 0 | '' | [1]
2 | x | max(x, 5) | gives at least 5 | 3 | 8 | 1 | 20
2 | x | min(x, 10) | gives at most 10 | 15 | 4 | 3 | 100
2 | x | [x] * 3 | lists its argument three times | 2 | 7 | 'a' | 0
2 | x | x, x + 1 | gives a number and the next one | 4 | 9 | 0 | 20
2 | x | str(x) + 'kg' | writes a weight in kg | 5 | 12 | 0 | 80
2 | s | int(s) | reads a number | '12' | '7' | '-3' | '100'
2 | s | int(s) + 1 | reads a number and adds 1 | '12' | '7' | '0' | '99'
2 | s | s[-1] | gives the last letter | 'sun' | 'tree' | 'a' | 'box'
2 | s | s[:-1] | leaves out the last letter | 'cats' | 'red' | 'x' | 'boats'
2 | s | s[:3] | keeps three letters | 'garden' | 'summer' | 'flower' | 'winter'
2 | s | s[::-1] | turns a text around | 'abc' | 'no' | 'top' | 'ab'
2 | s | s.split() | gives the words | 'a b' | 'one two three' | 'x' | 'go on'
2 | s | s.split(',') | splits a text at commas | 'a,b' | '1,2,3' | 'x' | 'red,blue'
2 | s | s.strip() | removes spaces at the ends | ' a' | 'hi ' | ' x y ' | '  z'
2 | s | list(s) | gives the letters as a list | 'abc' | 'no' | '' | 'x'
2 | s | s * 3 | says it three times | 'ab' | 'x' | 'no' | 'ho'
2 | s | s.capitalize() | makes the first letter a capital | 'hello' | 'sun' | 'red' | 'x'
2 | s | s.count('o') | counts the letter o | 'book' | 'fox' | 'sea' | 'ooo'
2 | s | s.startswith('a') | says whether a text begins with a | 'apple' | 'dog' | 'ant' | 'sea'
2 | s | s.endswith('s') | says whether a text ends with s | 'cat' | 'dogs' | 'bus' | 'tree'
2 | s | s.replace('a', 'o') | makes every a an o | 'cat' | 'banana' | 'a' | 'hat'
2 | s | s.replace(' ', '') | removes the spaces | 'a b' | 'go on' | 'x y z' | ' hi'
2 | s | 'e' in s | says whether there is an e | 'tree' | 'cat' | 'red' | 'fox'
2 | s | s + '.txt' | makes the name of a text file | 'note' | 'a' | 'list' | 'data'
2 | s | s.find('b') | gives the position of the letter b | 'cab' | 'abc' | 'bus' | 'table'
2 | s | {s: len(s)} | maps a text to its length | 'cat' | 'house' | 'a' | 'no'
2 | a | a[1] | gives the second item | [7, 8, 9] | [3, 1] | ['a', 'b'] | [0, 4, 6]
2 | a | a[1:] | leaves out the first item | [1, 2, 3] | [5, 6] | [4] | [7, 0, 2]
2 | a | sum(a) | adds up the items | [1, 2, 3] | [10, 5] | [] | [4, 4, 4]
2 | a | max(a) | gives the largest item | [3, 9, 2] | [1, 4] | [7] | [-1, -5]
2 | a | min(a) | gives the smallest item | [3, 9, 2] | [1, 4] | [7] | [-1, -5]
2 | a | a + [len(a)] | adds its length to a list | [5, 6] | [9] | [] | [1, 1, 1]
2 | a | a.count(1) | counts the ones | [1, 2, 1] | [3, 1] | [4] | [1, 1, 1]
2 | a | 3 in a | says whether 3 is there | [1, 2] | [3, 4] | [5, 3] | []
2 | a | tuple(a) | makes a tuple of a list | [1, 2] | [5] | [] | ['a', 'b']
2 | a | set(a) | makes a set of a list | [1, 1] | [4, 5] | [7, 7, 8] | [2]
2 | a | ''.join(a) | joins texts | ['a', 'b'] | ['go', 'od'] | ['x'] | ['c', 'a', 't']
2 | a | ' '.join(a) | joins texts with spaces | ['a', 'b'] | ['go', 'on'] | ['x'] | ['I', 'am', 'it']
2 | n | list(range(n)) | counts from 0 | 3 | 7 | 0 | 1
2 | n | list(range(1, n + 1)) | counts from 1 | 3 | 6 | 1 | 2
2 | n | 'x' * n | writes an x n times | 3 | 6 | 0 | 1
2 | n | [0] * n | lists n zeros | 3 | 2 | 0 | 6
2 | a, b | max(a, b) | gives the larger number | 3, 8 | 9, 2 | 4, 4 | -1, 0
2 | a, b | min(a, b) | gives the smaller number | 3, 8 | 9, 2 | 4, 4 | -1, 0
2 | a, b | (b, a) | swaps its arguments | 1, 2 | 'a', 'b' | 0, 9 | 7, 3
2 | a, b | a // b | divides and rounds down | 9, 2 | 12, 4 | 7, 7 | 5, 2
2 | a, b | a % b | gives the remainder | 9, 4 | 7, 2 | 12, 5 | 6, 3
2 | a, b | a ** b | gives a power | 2, 3 | 3, 2 | 5, 1 | 10, 2
2 | a, b | str(a) + str(b) | writes two numbers one after the other | 1, 2 | 30, 4 | 0, 9 | 7, 7
2 | a, b | (a + b) / 2 | gives the mean of two numbers | 2, 4 | 10, 20 | 1, 3 | 8, 8
2 | a, b | a * b + 1 | multiplies and adds 1 | 2, 3 | 4, 5 | 0, 7 | 1, 1
2 | a, b | {a: b} | maps the first argument to the second | 1, 2 | 'a', 5 | 0, 0 | 'k', 'v'
2 | a, b | a and b | says whether both are true | True, False | True, True | False, True | 1, 5
2 | a, x | x in a | says whether an item is there | [3], 3 | [1, 2], 5 | [], 1 | [7, 8], 7
2 | a, x | a + [x] | adds an item at the end | [1, 2], 3 | [], 5 | [4], 4 | ['a'], 'b'
2 | d | d['a'] | gives what stands under a | {'a': 1} | {'a': 5, 'b': 2} | {'a': 'x'} | {'b': 0, 'a': 9}
3 | x | x * 2 + 1 | doubles and adds 1 | 3 | 9 | 0 | 10
3 | x | x * 3 - 1 | triples and takes 1 away | 2 | 4 | 10 | 1
3 | x | x * 10 + 5 | multiplies by 10 and adds 5 | 2 | 6 | 0 | 7
3 | x | (x + 1) * 3 | adds 1 and triples | 2 | 11 | 0 | 9
3 | x | (x + 2) * 2 | adds 2 and doubles | 3 | 10 | 0 | 8
3 | x | (x - 1) * 5 | takes 1 away and multiplies by 5 | 3 | 4 | 1 | 11
3 | x | x * x - x | squares and takes the number away | 3 | 6 | 1 | 10
3 | x | x * x + x | squares and adds the number | 2 | 6 | 0 | 10
3 | x | x // 2 + 1 | halves, rounds down and adds 1 | 7 | 4 | 0 | 10
3 | x | x // 10 + x % 10 | adds the two digits | 23 | 41 | 70 | 19
3 | x | (x + x) * x | doubles and multiplies by the number | 3 | 2 | 5 | 1
3 | x | abs(x) + 1 | takes away the sign and adds 1 | -4 | 6 | 0 | -9
3 | x | abs(x - 5) | gives the distance to 5 | 2 | 9 | 5 | 0
3 | x | len(str(x)) | counts the digits | 123 | 45 | 7 | 1000
3 | x | str(x)[0] | gives the first digit as text | 52 | 17 | 9 | 300
3 | x | str(x)[::-1] | turns the digits around, as text | 12 | 45 | 7 | 100
3 | x | int(str(x) + '0') | writes a 0 behind a number | 3 | 12 | 5 | 70
3 | x | 'even' if x % 2 == 0 else 'odd' | names even and odd numbers | 4 | 7 | 0 | 11
3 | x | 'big' if x > 10 else 'small' | names numbers above 10 big | 3 | 20 | 11 | 10
3 | x | 'hot' if x >= 30 else 'cold' | names a temperature | 35 | 10 | 30 | 2
3 | x | x if x > 0 else 0 | gives at least 0 | -5 | 4 | 7 | -1
3 | x | x + 1 if x % 2 else x | makes odd numbers even | 3 | 8 | 5 | 10
3 | x | x - 1 if x > 0 else 0 | counts down to 0 | 5 | 3 | 0 | 8
3 | x | 0 < x < 10 | says whether a number has one digit and is positive | 12 | 5 | 9 | 0
3 | x | [x, x * 2] | gives a number and its double | 3 | 12 | 0 | 10
3 | x | [x - 1, x + 1] | gives the neighbours of a number | 4 | 9 | 0 | 20
3 | x | (x // 2, x % 2) | halves and gives the remainder, too | 7 | 10 | 1 | 5
3 | x | 'yes' if x else 'no' | says yes or no | 1 | 0 | '' | [5]
3 | s | s[0].upper() | gives the first letter as a capital | 'sun' | 'moon' | 'a' | 'big'
3 | s | s[-1] + s[:-1] | moves the last letter to the front | 'tea' | 'ant' | 'no' | 'star'
3 | s | s + s[0] | adds the first letter at the end | 'ab' | 'sun' | 'x' | 'tea'
3 | s | s.upper() + '!' | says it loudly | 'go' | 'stop' | 'hi' | ''
3 | s | s.count('a') + s.count('e') | counts the letters a and e | 'tea' | 'bread' | 'sun' | 'ease'
3 | s | '-'.join(s) | puts dashes between letters | 'abc' | 'no' | 'xy' | 'four'
3 | s | len(s.split()) | counts the words | 'a b' | 'one two three' | 'x' | 'go on and on'
3 | s | s.split()[0] | gives the first word | 'red car' | 'go on now' | 'my dog' | 'a b'
3 | s | s.split()[-1] | gives the last word | 'red car' | 'go on now' | 'my dog' | 'a b'
3 | s | len(s) % 2 == 0 | says whether the number of letters is even | 'cat' | 'tree' | 'ab' | 'x'
3 | s | s == s[::-1] | says whether a text reads the same backwards | 'bob' | 'cat' | 'noon' | 'ab'
3 | s | s * len(s) | says a text as often as it has letters | 'ab' | 'x' | 'no' | 'cat'
3 | s | s if len(s) > 3 else s * 2 | says short texts twice | 'ab' | 'tree' | 'x' | 'moon'
3 | s | ''.join(sorted(s)) | sorts the letters of a text | 'cab' | 'tea' | 'no' | 'dog'
3 | s | ' '.join(s.split()[::-1]) | turns the words around | 'a b' | 'go on now' | 'red car' | 'my dog'
3 | s | int(s) * 2 | reads a number and doubles it | '4' | '10' | '0' | '25'
3 | s | 'Mr. ' + s.title() | writes a name with Mr. | 'smith' | 'brown' | 'fox' | 'west'
3 | a | a[0] + a[-1] | adds the first and the last | [1, 2, 3] | [6, 7] | [4] | [7, 0, 2]
3 | a | a[0] * a[1] | multiplies the first two items | [2, 3] | [5, 4, 1] | [0, 9] | [6, 6]
3 | a | [a[0], a[-1]] | gives the first and the last item | [1, 2, 3] | [5, 6, 7, 8] | [9, 0] | [4]
3 | a | sum(a) * 2 | doubles the sum | [1, 2] | [5] | [] | [3, 3, 4]
3 | a | sum(a) / len(a) | gives the mean | [2, 4] | [3, 3, 9] | [8] | [10, 0]
3 | a | sum(a) > 10 | says whether the sum is above 10 | [1, 2] | [9, 5] | [20] | [3, 3]
3 | a | max(a) - min(a) | gives the range of the items | [3, 9, 2] | [1, 4] | [7] | [10, 0]
3 | a | max(a) + min(a) | adds the largest and the smallest item | [3, 9, 2] | [1, 4] | [7] | [10, 0]
3 | a | sorted(a)[0] | sorts and gives the first item | [3, 1, 2] | [9, 8] | [5] | [7, 6, 0]
3 | a | sorted(a)[-2] | gives the second largest item | [3, 1, 2] | [9, 8] | [7, 6, 0] | [4, 5, 5, 1]
3 | a | a[len(a) // 2] | gives the item in the middle | [1, 2, 3] | [9, 7, 5] | [4] | [0, 0, 6, 0, 0]
3 | a | a[::-1][0] | turns a list around and gives the first item | [1, 2, 3] | [4, 5] | [6] | [9, 0]
3 | a | len(set(a)) | counts the different items | [1, 1, 2] | [5, 5] | [] | [1, 2, 3]
3 | a | [a, len(a)] | gives a list and its length | [5, 6] | [1] | [] | ['a', 'b', 'c']
3 | a | a or [0] | gives 0 in place of nothing | [] | [2] | [7, 8] | None
3 | a, b | (a + b) * 2 | adds and doubles | 1, 2 | 4, 5 | 0, 3 | 10, 10
3 | a, b | a * 10 + b | writes two digits as one number | 2, 3 | 7, 0 | 0, 5 | 9, 9
3 | a, b | a * a - b | squares the first number and subtracts the second | 3, 4 | 5, 5 | 2, 0 | 10, 1
3 | a, b | a - b if a > b else b - a | gives the distance of two numbers | 2, 7 | 9, 5 | 4, 4 | 0, 3
3 | a, b | 'same' if a == b else 'different' | compares | 1, 2 | 3, 3 | 'a', 'b' | 0, 0
3 | a, b | [a] * b | lists the first argument as often as the second says | 5, 2 | 'a', 3 | 0, 1 | 7, 0
3 | a, b | a[0] + b[0] | joins the first letters | 'tom', 'lee' | 'ann', 'fox' | 'x', 'y' | 'red', 'sea'
3 | a, b | a + ' ' + b | joins two words with a space | 'red', 'car' | 'my', 'dog' | 'go', 'on' | 'a', 'b'
3 | a, b | len(a) + len(b) | adds the lengths of two texts | 'ab', 'c' | 'tree', 'sun' | '', 'x' | 'no', 'no'
3 | a, b, c | a * b + c | multiplies two numbers and adds the third | 2, 3, 4 | 5, 1, 1 | 0, 9, 6 | 3, 3, 3
3 | a, b, c | max(a, b, c) | gives the largest of three numbers | 2, 9, 4 | 7, 1, 3 | 5, 5, 5 | 0, 1, 8
3 | d | d['a'] + d['b'] | adds what stands under a and b | {'a': 1, 'b': 2} | {'a': 5, 'b': 5} | {'a': 0, 'b': 7} | {'b': 1, 'a': 1}
3 | d | sum(d.values()) | adds up the values | {'a': 1, 'b': 2} | {'x': 5} | {} | {'k': 3, 'l': 4}
3 | d | d.get('k', 0) | gives what stands under k, or 0 | {'a': 1} | {'k': 5} | {} | {'k': 8, 'a': 1}
4 | a | [x + 1 for x in a] | adds 1 to every item | [1, 2] | [5, 0, 9] | [] | [7]
4 | a | [x * 2 for x in a] | doubles every item | [1, 2] | [5, 0, 9] | [] | [7]
4 | a | [x - 3 for x in a] | takes 3 away from every item | [4, 8] | [10, 3] | [5] | [6, 6, 7]
4 | a | [-x for x in a] | changes the sign of every item | [1, -2] | [8] | [3, 4] | [-7, 0]
4 | a | [len(s) for s in a] | gives the length of every text | ['a', 'cat'] | ['no'] | [] | ['tree', 'sun', '']
4 | a | [s.upper() for s in a] | makes capitals of every text | ['a', 'cat'] | ['no'] | ['x'] | ['red', 'sea']
4 | a | [s[0] for s in a] | gives the first letter of every text | ['red', 'cat'] | ['no'] | [] | ['tree', 'sun', 'x']
4 | a | [x for x in a if x > 0] | keeps what is positive | [1, -2, 3] | [-4, 5] | [-1] | [0, 8]
4 | a | [x for x in a if x % 2 == 0] | keeps the even items | [1, 2, 3, 4] | [6, 7] | [5] | [8, 9, 10]
4 | a | [x for x in a if x != 1] | leaves out the ones | [1, 2, 1, 3] | [1, 5] | [1] | [4, 1, 1]
4 | a | [x > 3 for x in a] | says of every item whether it is above 3 | [1, 5] | [4, 2, 9] | [] | [3]
4 | a | len([x for x in a if x > 5]) | counts the items above 5 | [1, 7, 9] | [6, 2] | [3] | [8, 8, 8]
4 | a | sum([x * x for x in a]) | adds up the squares | [1, 2] | [3] | [] | [2, 2, 1]
4 | a | all(x > 0 for x in a) | says whether all items are positive | [3, 4] | [1, -2] | [5] | [0, 7]
4 | a | any(x == 0 for x in a) | says whether an item is 0 | [1, 2] | [0, 4] | [3, 0] | [5]
4 | a | sorted(a)[::-1][:2] | gives the two largest items | [3, 9, 5] | [1, 4] | [7, 6, 8, 0] | [2, 10, 1]
4 | a | [a[i] for i in range(0, len(a), 2)] | keeps every other item, by its position | [5, 6, 7] | [1, 2, 3, 4] | [4] | [8, 9]
4 | n | [i * 2 for i in range(n)] | lists the first even numbers | 3 | 4 | 0 | 1
4 | n | [i + 5 for i in range(n)] | counts from 5 | 3 | 2 | 1 | 4
4 | n | sum(i for i in range(n) if i % 2 == 0) | adds up the even numbers below n | 5 | 4 | 1 | 8
4 | n | ''.join(str(i) for i in range(n)) | writes the digits from 0 on | 3 | 5 | 1 | 2
4 | s | ''.join(c for c in s if c != 'a') | removes the letter a | 'banana' | 'cat' | 'a' | 'sea'
4 | s | ''.join(c * 2 for c in s) | says every letter twice | 'ab' | 'cat' | 'x' | 'no'
4 | s | sum(int(c) for c in s) | adds up the digits of a text | '123' | '45' | '7' | '100'
4 | s | [w[0] for w in s.split()] | gives the first letter of every word | 'red car' | 'a big dog' | 'x' | 'go on'
4 | x | if x > 10:\n    return x - 10\nreturn x + 10 | moves a number by 10, towards 10 | 3 | 25 | 12 | 0
4 | x | if x < 0:\n    return 'negative'\nreturn 'positive' | names the sign of a number | 4 | -2 | -9 | 7
4 | x | y = x + 3\nreturn y * 2 | adds 3 and doubles | 1 | 8 | 7 | 0
4 | x | y = x * x\nreturn y + 10 | squares and adds 10 | 2 | 3 | 0 | 5
4 | x | while x > 5:\n    x = x - 5\nreturn x | takes 5 away until at most 5 is left | 12 | 8 | 16 | 9
4 | x | while x < 50:\n    x = x + 20\nreturn x | adds 20 until 50 is reached | 10 | 45 | 7 | 1
4 | n | t = 0\nfor i in range(n):\n    t = t + 2\nreturn t | adds 2 n times | 3 | 8 | 0 | 10
4 | n | t = 1\nfor i in range(1, n + 1):\n    t = t * i\nreturn t | multiplies the numbers from 1 to n | 3 | 4 | 1 | 5
4 | a | t = 0\nfor x in a:\n    t = t + x\nreturn t + 1 | adds up the items, and 1 | [1, 2] | [5] | [] | [3, 3]
4 | a | b = a + [0]\nreturn len(b) | counts the items, and one more | [4, 4] | [7] | [] | [1, 2, 3, 4]
4 | a | b = []\nfor x in a:\n    b = [x] + b\nreturn b | turns a list around, step by step | [1, 2, 3] | [4, 5] | [6, 8] | [9, 0, 9, 1]
4 | s | t = ''\nfor c in s:\n    t = c + t\nreturn t | turns a text around, letter by letter | 'abc' | 'no' | 'tea' | 'ab'
4 | s | if s == '':\n    return 'empty'\nreturn s[0] | gives the first letter, or says that there is none | 'sun' | '' | 'x' | 'moon'
4 | a, b | c = a + b\nreturn c * c | adds and squares | 1, 2 | 3, 2 | 0, 4 | 5, 5
4 | a, b | if a > b:\n    return 'first'\nreturn 'second' | says which number is larger | 5, 2 | 1, 4 | 9, 0 | 3, 7
4 | a, b | [x + b for x in a] | adds a number to every item | [1, 2], 3 | [5], 1 | [], 4 | [0, 7], 10
4 | a, b | [x for x in a if x < b] | keeps the items below a number | [1, 5, 9], 6 | [3, 4], 4 | [7], 2 | [0, 2, 8], 3
4 | a, b | [x for x in a if x not in b] | keeps what the second list has not | [1, 2, 3], [2] | [5, 6], [6, 7] | [4], [4] | [8, 9], [1, 8]
"""  # noqa: E501  one program a line


class Program(NamedTuple):
    """One function. Four inputs: two to show, two to hide."""

    difficulty: int
    parameters: str
    body: str
    message: str
    inputs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The function's text."""
        body = self.body.replace("\\n", "\n    ")
        return f"def f({self.parameters}):\n    {body if 'return' in body else f'return {body}'}"


def programs() -> list[Program]:
    """All programs, in the order of the table."""
    found = []
    for line in PROGRAMS.strip().splitlines():
        difficulty, parameters, body, message, *inputs = line.split(" | ")
        found.append(Program(int(difficulty), parameters, body, f"f {message}.", tuple(inputs)))
    return found
